"""The forward of adapted layers: equal to peft's, and left to peft wherever an adapter is more than plain LoRA."""

import copy
import io
from contextlib import nullcontext
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from leaf.model.layer_forward import plain_forward, replace_forward
from leaf.model.lora_forward import Adapted, held

EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}


class Net(nn.Module):
    """Two linear layers in a row, the second without a bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 5, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def build(dtype=torch.float32, **settings) -> Any:
    """Return a network with float32 adapters on weights of `dtype`."""
    torch.manual_seed(0)
    settings = {"r": 3, "lora_alpha": 7, "init_lora_weights": False, "target_modules": ["first", "second"]} | settings
    net: Any = Net().to(dtype).requires_grad_(False)
    model = peft.get_peft_model(net, peft.LoraConfig(**settings))
    replace_forward(model)
    for layer in layers(model):
        layer.cast_input_dtype_enabled = False
    return model.eval()


def layers(model) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Adapted)]


def run(model, x, weight, forward=None):
    """Return the output, and the gradients of the input and of all trained matrices."""
    x = x.clone().requires_grad_()
    y = (forward or model)(x)
    (y.float() * weight).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return [y.detach(), x.grad, *gradients]


def is_ours(layer, dtype=torch.float32):
    y = layer(torch.randn(2, layer.in_features, dtype=dtype, requires_grad=True))
    return type(y.grad_fn).__name__ == "_ProductBackward"


def assert_equals_peft(model, x, **tolerance):
    weight = torch.randn(*x.shape[:-1], 5)
    got = run(model, x, weight)
    with plain_forward(model):
        assert not layers(model)
        wanted = run(model, x, weight)
    assert [one.dtype for one in got] == [one.dtype for one in wanted]
    assert any(float(one.abs().max()) > 0.1 for one in wanted[2:])
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, **tolerance)
    with torch.no_grad():
        assert torch.equal(model(x), wanted[0])
        with held(model, x.dtype):
            assert torch.allclose(model(x), wanted[0], **tolerance)


@pytest.mark.parametrize("shape", [(4,), (2, 7), (3, 2, 2)], ids=str)
def test_outputs_and_gradients_equal_pefts(shape):
    model = build()
    assert [is_ours(layer) for layer in layers(model)] == [True, True]
    assert_equals_peft(model, torch.randn(*shape, 6), **EXACT)


def test_inputs_that_are_not_contiguous_or_empty_give_the_same():
    assert_equals_peft(build(), torch.randn(6, 3, 4).permute(1, 2, 0), **EXACT)
    output, of_input, *gradients = run(build(), torch.randn(2, 0, 6), torch.ones(2, 0, 5))
    assert output.shape == (2, 0, 5)
    assert of_input.shape == (2, 0, 6)
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_half_precision_computes_in_the_precision_of_the_weights():
    model = build(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(is_ours(layer, torch.bfloat16) for layer in layers(model))
        assert_equals_peft(model, torch.randn(30, 6).bfloat16(), atol=0.15, rtol=0.02)
        found = run(model, torch.randn(30, 6).bfloat16(), torch.randn(30, 5))
    assert [one.dtype for one in found] == [torch.bfloat16] * 2 + [torch.float32] * 4


def test_the_gradient_is_that_of_the_formula_in_float64():
    model = build().double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    layer = layers(model)[0]
    assert is_ours(layer, torch.float64)
    matrices = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    assert torch.autograd.gradcheck(lambda *_: layer(x), [x, *matrices])


def test_checkpointing_gives_the_same():
    model, x, weight = build(), torch.randn(4, 6), torch.randn(4, 5)
    again = run(model, x, weight, lambda x: checkpoint(model, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(again, run(model, x, weight), strict=True))


def test_only_the_input_and_its_product_with_a_are_kept():
    model, kept = build(), []
    layer = layers(model)[0]
    x = torch.randn(50, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        layer(x)
    parameters = {p.data_ptr() for p in model.parameters()}
    assert sorted(one.shape for one in kept if one.data_ptr() not in parameters) == [(50, 3), (50, 6)]


def test_held_adapters_are_cast_once_and_honour_what_is_switched_off():
    model, x = build(torch.bfloat16), torch.randn(4, 6).bfloat16()
    with torch.no_grad(), model.disable_adapter():
        base = model(x)
        with held(model, x.dtype):
            assert torch.equal(model(x), base)
    with torch.autocast("cpu", dtype=torch.bfloat16), held(model, x.dtype):
        assert all(layer._held is not None for layer in layers(model))
        assert all(is_ours(layer, x.dtype) for layer in layers(model))  # where a graph is kept
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # nothing is left to cast
            assert not torch.allclose(model(x), base)
            with model.disable_adapter():
                assert torch.equal(model(x), base)
    assert all(layer._held is None for layer in layers(model))


def test_no_cast_stays_where_holding_one_fails(monkeypatch):
    model, x = build(torch.float32), torch.randn(4, 6)
    one = layers(model)[-1]
    monkeypatch.setattr(one, "scaling", {})
    with pytest.raises(KeyError), held(model, x.dtype):
        pass
    assert all(layer._held is None for layer in layers(model))


def adapted_twice(model):
    model.add_adapter("other", peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["first", "second"]))
    model.base_model.set_adapter(["default", "other"])


def watched(part):
    def change(model):
        for layer in layers(model):
            part(layer).register_forward_hook(lambda module, args, output: output * 2)

    return change


LEFT_TO_PEFT = {
    "dora": ({"use_dora": True}, None),
    "lora_bias": ({"lora_bias": True}, None),
    "dropout": ({"lora_dropout": 0.5}, lambda model: model.train()),
    "merged": ({}, lambda model: model.merge_adapter()),
    "disabled": ({}, lambda model: model.base_model.disable_adapter_layers()),
    "two adapters": ({}, adapted_twice),
    "hook on the base": ({}, watched(lambda layer: layer.base_layer)),
    "hook on A": ({}, watched(lambda layer: layer.lora_A["default"])),
    "trained base": ({}, lambda model: [layer.base_layer.weight.requires_grad_(True) for layer in layers(model)]),
}


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.parametrize("case", LEFT_TO_PEFT)
def test_what_is_not_plain_is_left_to_peft(case):
    settings, change = LEFT_TO_PEFT[case]
    model = build(**settings)
    if change is not None:
        change(model)
    x = torch.randn(4, 6)
    torch.manual_seed(3)
    got = model(x)
    assert not any(is_ours(layer) for layer in layers(model))
    with held(model, x.dtype):
        assert not any(layer._held for layer in layers(model))
    with plain_forward(model):
        torch.manual_seed(3)
        assert torch.equal(model(x), got)


def test_dropout_out_of_training_is_plain():
    model = build(lora_dropout=0.5)
    assert all(is_ours(layer) for layer in layers(model))
    assert_equals_peft(model, torch.randn(4, 6), **EXACT)


@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_precision_of_another_kind_is_left_to_peft(autocast):
    """Float32 weights under autocast, and half-precision ones without it, whose adapters multiply in float32."""
    model = build() if autocast else build(torch.bfloat16)
    for layer in layers(model):
        layer.cast_input_dtype_enabled = True
    x = torch.randn(4, 6) if autocast else torch.randn(4, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        assert not any(is_ours(layer, x.dtype) for layer in layers(model))
        assert_equals_peft(model, x, atol=0, rtol=0)


def test_adapters_named_per_row_are_left_to_peft():
    layer, x = layers(build())[0], torch.randn(2, 6)
    mixed = layer(x, adapter_names=["default", "__base__"])
    assert torch.allclose(mixed[:1], layer(x[:1]), **EXACT)
    assert torch.allclose(mixed[1:], layer.base_layer(x[1:]), **EXACT)


def test_names_copies_and_merging_stay_pefts():
    model = build()
    with plain_forward(model):
        names = list(model.state_dict())
    assert list(model.state_dict()) == names
    x = torch.randn(4, 6)
    wanted = model(x)
    twin = copy.deepcopy(model)
    for layer in layers(twin):
        layer.lora_B["default"].weight.data.zero_()  # the copy's own
    assert torch.equal(model(x), wanted)
    assert not torch.allclose(twin(x), wanted)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), wanted)
    whole = model.merge_and_unload()
    assert type(whole.first) is nn.Linear
    assert torch.allclose(whole(x), wanted, **EXACT)

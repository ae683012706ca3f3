"""Norms and gated MLPs that keep less for the backward pass: equal to those of transformers, or left to them."""

import copy
import pickle
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import GraniteConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.granite.modeling_granite import GraniteModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from leaf.model.layer_forward import _is_ours, plain_forward, replace_forward

MLP = ("gate_proj", "up_proj", "down_proj")
SHAPE: dict[str, Any] = {"vocab_size": 32, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 3, "num_key_value_heads": 1}
MODELS = [
    (LlamaModel, LlamaConfig),
    (GraniteModel, GraniteConfig),
    (MistralModel, MistralConfig),
    (Qwen2Model, Qwen2Config),
    (Qwen3Model, Qwen3Config),
]


def build(kind=LlamaModel, config=LlamaConfig, *, dtype=torch.float32, names=MLP, **settings) -> Any:
    """Return a frozen decoder with an adapter that is not zero, and norms whose weights are not one."""
    torch.manual_seed(0)
    options = {name: settings.pop(name) for name in ("hidden_act",) if name in settings}
    model: Any = kind(config(**SHAPE, **options)).requires_grad_(False)
    model = model.to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    lora = peft.LoraConfig(**{"r": 2, "init_lora_weights": False, "target_modules": list(names)} | settings)
    model = peft.get_peft_model(model, lora)
    replace_forward(model)
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return model


def run(module, x, *, half=False):
    """Return what a module makes of x, and the gradients of x and of all that is trained."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        y = module(inputs_embeds=x).last_hidden_state if hasattr(module, "base_model") else module(x)
    (y.float() * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return [y.detach(), x.grad, *gradients]


def ours_ran(module, x):
    return type(module(x).grad_fn).__name__ in ("_NormBackward", "_GatedBackward")


def mlp_of(model) -> Any:
    return next(module for module in model.modules() if isinstance(module, LlamaMLP))


@pytest.mark.parametrize(("kind", "config"), MODELS)
def test_a_decoder_computes_the_same_in_float32(kind, config):
    model = build(kind, config)
    # Two norms and an MLP a layer, and the last norm; Qwen3 has norms of queries and keys, too.
    assert sum(_is_ours(module) for module in model.modules()) >= 2 * 3 + 1
    x = torch.randn(2, 5, 12)
    got = run(model, x)
    with plain_forward(model):
        assert not any(_is_ours(module) for module in model.modules())
        wanted = run(model, x)
    assert any(_is_ours(module) for module in model.modules())
    assert len(got) == len(wanted) == 2 + 2 * 2 * 3
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_in_half_precision_outputs_are_equal_and_gradients_close():
    model, x = build(dtype=torch.bfloat16), torch.randn(3, 7, 12, dtype=torch.bfloat16)
    got = run(model, x, half=True)
    with plain_forward(model):
        wanted = run(model, x, half=True)
    assert float((got[0] - wanted[0]).abs().max()) <= 0.02 * float(wanted[0].abs().max())
    for one, other in zip(got[1:], wanted[1:], strict=True):
        assert float((one - other).norm()) <= 0.05 * float(other.norm())


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh", "relu", "linear"])
@pytest.mark.parametrize("names", [MLP, ("down_proj",), ("gate_proj",), ("q_proj",)])
def test_every_activation_and_part_of_an_mlp_that_is_adapted(activation, names):
    model = build(names=names, hidden_act=activation)
    mlp, x = mlp_of(model), torch.randn(4, 12)
    got = run(mlp, x)
    assert ours_ran(mlp, x.clone().requires_grad_())
    wanted = run(lambda_module(mlp, lambda x: type(mlp).forward(mlp, x)), x)
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-5)
    x = torch.randn(4, 12)
    kept = x.clone()
    mlp(x.requires_grad_()).sum().backward()
    assert torch.equal(x.detach(), kept)  # nothing is changed in place


def lambda_module(module, forward):
    """Return a module that shares the parameters of another and computes something else."""
    made = nn.Module()
    made.inner, made.forward = module, forward  # type: ignore[assignment]
    return made


def test_a_norm_of_zeros_and_of_large_numbers_has_finite_gradients():
    norm: Any = LlamaRMSNorm(6).requires_grad_(False)
    replace_forward(norm)
    for x in (torch.zeros(2, 6), torch.full((2, 6), 1e15), torch.full((2, 6), 1e-30)):
        got = run(norm, x)
        wanted = run(lambda_module(norm, lambda x: LlamaRMSNorm.forward(norm, x)), x)
        for one, other in zip(got, wanted, strict=True):
            assert torch.isfinite(one).all()
            assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)


def test_what_is_more_than_plain_runs_its_own_forward():
    x = torch.randn(4, 12, requires_grad=True)
    dropped = mlp_of(build(lora_dropout=0.5).train())
    assert not ours_ran(dropped, x)
    assert ours_ran(dropped.eval(), x)
    for part in ("up_proj", "up_proj.base_layer", "down_proj.lora_A.default"):
        watched, seen = mlp_of(build()), []
        watched.get_submodule(part).register_forward_hook(lambda *given, seen=seen: seen.append(1))
        watched(x)
        assert seen
    learned = mlp_of(build())
    learned.act_fn = nn.PReLU(20)
    assert not ours_ran(learned, x)
    trained: Any = LlamaRMSNorm(12)
    replace_forward(trained)
    assert not ours_ran(trained, x)
    disabled = build()
    with disabled.disable_adapter():
        assert torch.equal(mlp_of(disabled)(x), type(mlp_of(disabled)).forward(mlp_of(disabled), x))


def test_without_a_graph_nothing_is_kept():
    model, x = build(), torch.randn(2, 12)
    with torch.no_grad():
        assert torch.equal(mlp_of(model)(x), type(mlp_of(model)).forward(mlp_of(model), x))
    assert mlp_of(build(names=("q_proj",)))(x).grad_fn is None


def test_a_class_that_computes_something_else_keeps_its_forward():
    class Half(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) / 2

    class Described(LlamaRMSNorm):
        def forward(self, hidden_states):
            """Say what Llama's does not."""
            input_dtype = hidden_states.dtype
            hidden_states = hidden_states.to(torch.float32)
            variance = hidden_states.pow(2).mean(-1, keepdim=True)
            hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
            return self.weight * hidden_states.to(input_dtype)

    other, same = Half(4), Described(4)
    for norm in (other, same):
        replace_forward(norm.requires_grad_(False))
    assert not _is_ours(other)
    assert _is_ours(same)
    replaced = LlamaRMSNorm(4).requires_grad_(False)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    replace_forward(replaced)
    assert replaced(3) == 3


def test_copies_and_pickled_models_compute_with_their_own_weights():
    model, x = build(), torch.randn(2, 12)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = mlp_of(model)(x)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.zero_()
        assert not mlp_of(made)(x).any()
        assert torch.equal(mlp_of(model)(x), before)

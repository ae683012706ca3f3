"""Compute a linear layer and its LoRA in one step of the graph: y = W x + b + s B (A x).

peft computes the same with a module for each matrix, and adds, scales and keeps a result after each. Here the second
product is added to the first in place, and the backward pass adds up the gradient of x in place. Only x and s A x are
kept. Parameters, module tree and files stay peft's. Whatever is not plain LoRA is left to peft's own forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class _Product(torch.autograd.Function):
    """Compute y (..., out) from x (..., in), W (out, in), b (out,) or None, A (r, in), B (out, r) and s."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        down, up, rows = down.to(x.dtype), up.to(x.dtype), x.reshape(-1, x.shape[-1])
        inner = linear(rows, down).mul_(scaling)
        ctx.save_for_backward(rows, inner, down, up, weight)
        ctx.scaling, ctx.shape = scaling, x.shape
        return linear(rows, weight, bias).addmm_(inner, up.t()).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, inner, down, up, weight = ctx.saved_tensors
        wanted, grad = ctx.needs_input_grad, grad.reshape(-1, grad.shape[-1])
        back = (grad @ up).mul_(ctx.scaling)  # (N, r), the gradient of A x
        of_x = (grad @ weight).addmm_(back, down).view(ctx.shape) if wanted[0] else None
        return of_x, None, None, back.t() @ rows if wanted[3] else None, grad.t() @ inner if wanted[4] else None, None


class Adapted(lora.Linear):
    """peft's linear layer with LoRA, with a forward of our own where it is plain."""

    _held: tuple[nn.Linear, Tensor, Tensor] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer; peft does it where the adapter is off or merged, or is more than one product."""
        if args or kwargs or self.disable_adapters:
            return super().forward(x, *args, **kwargs)
        graph = torch.is_grad_enabled()
        if self._held is not None and not graph and self._held[1].dtype == x.dtype:
            base, down, up = self._held
            rows = x.reshape(-1, x.shape[-1])
            y = linear(rows, base.weight, base.bias).addmm_(linear(rows, down), up)
            return y.view(*x.shape[:-1], y.shape[-1])
        if not graph or not _is_plain(self, x.dtype, x.device.type):
            return super().forward(x)
        name, base = self.active_adapters[0], self.base_layer
        given = (base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])
        return _Product.apply(x, *given)  # type: ignore[misc]


@contextmanager
def held(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast the adapters to a precision once for all forwards without a graph inside the block, which trains nothing.

    A decoding step has so few rows that checks and casts in every layer take a part of its time that shows.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Adapted)]
    try:
        with torch.no_grad():
            for layer in layers:
                if not layer.disable_adapters and _is_plain(layer, dtype, layer.base_layer.weight.device.type):
                    name, base = layer.active_adapters[0], layer.base_layer
                    up = (layer.lora_B[name].weight * layer.scaling[name]).to(dtype).t()
                    layer._held = (base, layer.lora_A[name].weight.to(dtype), up)
        yield
    finally:
        for layer in layers:
            layer._held = None


def replace_forward(model: nn.Module) -> None:
    """Make every linear layer that peft has put LoRA on an `Adapted` one, in place."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = Adapted


@contextmanager
def plain_peft(model: nn.Module) -> Iterator[None]:
    """Let peft compute all adapted layers inside the block, as a measure to compare with."""
    replaced: list[Any] = [module for module in model.modules() if type(module) is Adapted]
    for module in replaced:
        module.__class__ = lora.Linear
    try:
        yield
    finally:
        for module in replaced:
            module.__class__ = Adapted


def _is_plain(layer: lora.Linear, dtype: torch.dtype, device: str) -> bool:
    """Tell whether a layer makes of inputs in `dtype` what `_Product` does, in the same precision."""
    names = layer.active_adapters
    if layer.merged or len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant:
        return False
    dropout = layer.lora_dropout[names[0]]
    base, down, up = parts = layer.base_layer, layer.lora_A[names[0]], layer.lora_B[names[0]]
    if not all(type(part) is nn.Linear and not _is_watched(part) for part in parts):
        return False
    if base.weight.requires_grad or up.bias is not None or (dropout.training and type(dropout) is not nn.Identity):
        return False
    if torch.is_autocast_enabled(device):  # then all products are in its precision
        return dtype == base.weight.dtype == torch.get_autocast_dtype(device)
    return dtype == base.weight.dtype == down.weight.dtype == up.weight.dtype


def _is_watched(module: nn.Module) -> bool:
    """Tell whether somebody watches or has replaced a module's own forward, which is not called here."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__

"""Compute a linear layer and its LoRA in one step of the graph: y = W x + b + s B (A x).

peft computes the same with a module for each matrix, and adds, scales and keeps a result after each. Here the second
product is added to the first in place, and the backward pass adds up the gradient of x in place. Only x and s A x are
kept. Parameters, module tree and files stay peft's. Whatever is not plain LoRA is left to peft's own forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Parts(NamedTuple):
    """What a linear layer multiplies by: W (out, in), b (out,) or None, and of its adapter A (r, in), B (out, r), s."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 1.0

    def to(self, dtype: torch.dtype) -> "Parts":
        """Cast the adapter, which may be kept in another precision than the weights."""
        down, up = (None if one is None else one.to(dtype) for one in (self.down, self.up))
        return self._replace(down=down, up=up)

    def product(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute W x + b + s B (A x) of rows x (N, in), and s A x (N, r), which the backward pass needs."""
        y = linear(rows, self.weight, self.bias)
        if self.down is None or self.up is None:
            return y, None
        inner = linear(rows, self.down).mul_(self.scaling)
        return y.addmm_(inner, self.up.t()), inner

    def of_inner(self, grad: Tensor) -> Tensor | None:
        """Compute the gradient of A x (N, r) from that of y (N, out); None without an adapter."""
        return None if self.up is None else (grad @ self.up).mul_(self.scaling)

    def of_rows(self, grad: Tensor, back: Tensor | None, total: Tensor | None = None) -> Tensor:
        """Compute the gradient of x from those of y and A x, added to `total` in place if there is one."""
        total = grad @ self.weight if total is None else total.addmm_(grad, self.weight)
        return total if back is None or self.down is None else total.addmm_(back, self.down)


def of_adapter(grad: Tensor, back: Tensor | None, rows: Tensor | None, inner: Tensor | None) -> Sequence[Tensor | None]:
    """Compute the gradients of A and B from those of y and A x, from x and from s A x."""
    return (None, None) if back is None or rows is None or inner is None else (back.t() @ rows, grad.t() @ inner)


class _Product(torch.autograd.Function):
    """Compute y (..., out) from x (..., in) and the parts of a layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:  # type: ignore[override]
        rows, parts = x.reshape(-1, x.shape[-1]), Parts._make(given).to(x.dtype)
        y, inner = parts.product(rows)
        ctx.save_for_backward(rows, inner, *parts[:-1])
        ctx.scaling, ctx.shape = parts.scaling, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, inner, *parts = ctx.saved_tensors
        parts, grad = Parts._make([*parts, ctx.scaling]), grad.reshape(-1, grad.shape[-1])
        back = parts.of_inner(grad)
        of_x = parts.of_rows(grad, back).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, *of_adapter(grad, back, rows, inner), None


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
        parts = parts_of(self, x) if graph else None
        return super().forward(x) if parts is None else _Product.apply(x, *parts)  # type: ignore[misc]


@contextmanager
def held(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast the adapters to a precision once for all forwards without a graph inside the block, which trains nothing.

    A decoding step has so few rows that checks and casts in every layer take a part of its time that shows.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Adapted)]
    try:
        with torch.no_grad():
            for layer in layers:
                parts = parts_of(layer, layer.base_layer.weight.new_empty(0, dtype=dtype))
                if parts is not None and parts.down is not None and parts.up is not None:
                    up = (parts.up * parts.scaling).to(dtype).t()
                    layer._held = (layer.base_layer, parts.down.to(dtype), up)
        yield
    finally:
        for layer in layers:
            layer._held = None


def put_adapted(model: nn.Module) -> None:
    """Make every linear layer that peft has put LoRA on an `Adapted` one, in place."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = Adapted


def put_back(model: nn.Module) -> None:
    """Make every `Adapted` layer peft's own again, in place."""
    for module in model.modules():
        if type(module) is Adapted:
            module.__class__ = lora.Linear  # type: ignore[assignment]


def parts_of(layer: nn.Module, x: Tensor) -> Parts | None:
    """Take what a frozen linear layer, with or without LoRA, computes of inputs like x; None where it is more or other.

    The products of `Parts` are then the layer's own, in the same precision.
    """
    if type(layer) is nn.Linear:
        plain = not layer.weight.requires_grad and not is_watched(layer) and _is_precision(x, layer.weight)
        return Parts(layer.weight, layer.bias) if plain else None
    if not isinstance(layer, Adapted) or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant:
        return None
    dropout = layer.lora_dropout[name]
    parts: list[Any] = [layer.base_layer, layer.lora_A[name], layer.lora_B[name]]
    base, _, up = parts
    if not all(type(part) is nn.Linear and not is_watched(part) for part in parts):
        return None
    if base.weight.requires_grad or up.bias is not None or (dropout.training and type(dropout) is not nn.Identity):
        return None
    weight, of_down, of_up = weights = [part.weight for part in parts]
    if not _is_precision(x, *weights):
        return None
    return Parts(weight, base.bias, of_down, of_up, layer.scaling[name])


def _is_precision(x: Tensor, weight: Tensor, *adapter: Tensor) -> bool:
    """Tell whether a layer with these weights computes in the precision of x."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # then all products are in its precision
        return x.dtype == weight.dtype == torch.get_autocast_dtype(kind)
    return all(x.dtype == one.dtype for one in (weight, *adapter))


def is_watched(module: nn.Module) -> bool:
    """Tell whether somebody watches or has replaced a module's own forward, which is not called here."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__

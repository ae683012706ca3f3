"""Run norms and gated MLPs of a decoder with less kept for the backward pass, and adapted linear layers in one step.

Between sampling and update the prompts' graph waits (leaf.model.kept), so what a layer keeps is the memory of a step.
Autograd keeps a single-precision copy of what a norm reads, and of an MLP the gate, its activation, the other factor
and their product. Here a norm keeps what it read, and an MLP its two factors; the rest is computed again.

Which layers are meant is told by how they are written: a class whose `forward` has the same statements as Llama's does
the same. All others run their own.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from leaf.model.lora_forward import Parts, is_watched, of_adapter, parts_of, put_adapted, put_back


class _Norm(torch.autograd.Function):
    """Compute w · x / √(mean x² + ε) of x (..., D), rounded to the precision of x before w is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        wide = x.float()
        slope = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, slope)
        return weight * (wide * slope).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, slope = ctx.saved_tensors
        wide, grad = x.float(), (grad * weight).float()
        along = torch.linalg.vecdot(grad, wide)[..., None].mul_(slope.square()).div_(x.shape[-1])
        return torch.addcmul(grad, wide, along, value=-1).mul_(slope).to(x.dtype), None, None


class _Gated(torch.autograd.Function):
    """Compute down(f(gate(x)) · up(x)) of x (..., D) from the parts of the three layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: nn.Module, *given: Any) -> Tensor:  # type: ignore[override]
        rows = x.reshape(-1, x.shape[-1])
        gate, up, down = parts = [Parts._make(given[i : i + 5]).to(x.dtype) for i in (0, 5, 10)]
        (left, inner_left), (right, inner_right) = gate.product(rows), up.product(rows)
        y, inner = down.product(activation(left) * right)
        adapted = inner_left is not None or inner_right is not None
        kept = [rows if adapted else None, left, right, inner_left, inner_right, inner]
        ctx.save_for_backward(*kept, *(one for part in parts for one in part[:-1]))
        ctx.activation, ctx.scaling, ctx.shape = activation, [part.scaling for part in parts], x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, left, right, inner_left, inner_right, inner, *saved = ctx.saved_tensors
        gate, up, down = (Parts._make([*saved[4 * i : 4 * i + 4], ctx.scaling[i]]) for i in range(3))
        with torch.enable_grad():
            left = left.detach().requires_grad_()
            bent = ctx.activation(left)
        product, grad = bent.detach() * right, grad.reshape(-1, grad.shape[-1])
        back = down.of_inner(grad)
        of_product = down.of_rows(grad, back)
        of_down = of_adapter(grad, back, product, inner)
        (of_left,) = torch.autograd.grad(bent, left, of_product * right)
        of_right, total, others = of_product.mul_(bent.detach()), None, []
        for parts, of_factor, inner in ((gate, of_left, inner_left), (up, of_right, inner_right)):
            back = parts.of_inner(of_factor)
            if ctx.needs_input_grad[0]:
                total = parts.of_rows(of_factor, back, total)
            others += [None, None, *of_adapter(of_factor, back, rows, inner), None]
        of_x = None if total is None else total.view(ctx.shape)
        return of_x, None, *others, None, None, *of_down, None


def _norm(module: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or module.weight.requires_grad or module.weight.dtype != x.dtype:
        return type(module).forward(module, x)
    return _Norm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[return-value]


def _gated(module: Any, x: Tensor) -> Tensor:
    layers, parts = (module.gate_proj, module.up_proj, module.down_proj), None
    if torch.is_grad_enabled() and not any(map(is_watched, layers)) and not list(module.act_fn.parameters()):
        parts = [parts_of(layer, x) for layer in layers]
    if parts is None or any(part is None for part in parts):
        return type(module).forward(module, x)
    return _Gated.apply(x, module.act_fn, *(one for part in parts if part is not None for one in part))  # type: ignore


def replace_forward(model: nn.Module) -> None:
    """Let a decoder's norms, gated MLPs and adapted layers run as above, in place; modules and names stay."""
    put_adapted(model)
    for module in model.modules():
        for written, ours in ((LlamaRMSNorm, _norm), (LlamaMLP, _gated)):
            if "forward" not in module.__dict__ and _statements(type(module)) == _statements(written):
                module.forward = partial(ours, module)  # type: ignore[method-assign]


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Let transformers and peft compute all layers inside the block, as a measure to compare with."""
    ours: list[Any] = [module for module in model.modules() if _is_ours(module)]
    for module in ours:
        del module.forward
    put_back(model)
    try:
        yield
    finally:
        replace_forward(model)


def _is_ours(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func in (_norm, _gated)


@cache
def _statements(kind: type) -> str | None:
    """Write a class's `forward` as its syntax tree, without its description; None where there is no source."""
    try:
        parsed: Any = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return None
    (function,) = parsed.body
    names = [argument.arg for argument in function.args.args]
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return f"{names} {[ast.dump(statement) for statement in body]}"

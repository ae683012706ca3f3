"""Frozen layers in pieces: every process keeps its share of each layer and all gather a layer whenever one needs it.

Storage and gathering are FSDP2's (torch.distributed.fsdp.fully_shard); its timing is not, since it takes for granted
that all processes run the same layers in the same order, and here they do not: one decodes longer, another takes more
micro-batches or tries again. So processes gather on demand. Before a gather each names the layer it needs, or none if
it waits at a collective of the run; the largest number named is gathered by all, and whoever needed another one asks
again. No order of work can make that hang, and processes in step gather nothing twice: where one is ahead in a forward,
the others wait for it, and all begin the next one together.

Exactly one layer is whole at a time, the same in every process. What is trained, embeddings, head and whatever is not
in a list of layers stay whole everywhere.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from leaf.errors import ConfigError, RunError
from leaf.model.policy import Policy

_NONE = -1


class Shards:
    """Cut the frozen layers of a policy over all processes and gather them while they are needed.

    The policy may lie on the CPU: each layer goes to `device` on its own, and only a share of it stays there.

    Args:
        policy: the policy, its adapter on it; changed in place.
        device: where it is to run.

    Attributes:
        held: the layer that is whole now, the same number in every process; -1 for none.
        gathers: how many layers were gathered.

    Raises:
        ConfigError: the model has no list of layers with frozen weights.
    """

    def __init__(self, policy: Policy, device: torch.device):
        self.held, self.gathers = _NONE, 0
        self.layers: list[FSDPModule] = []
        self._failure: Exception | None = None
        # Which layer comes next is agreed on the CPU, so that no GPU has to be waited for.
        self._words = distributed.new_group(backend="gloo")
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for layer in _layers(policy):
            whole = {p for p in layer.parameters() if p.requires_grad or p.ndim == 0}  # FSDP takes no scalars
            # Around the layer, outside the model: its forward, and with it FSDP's own timing, never runs.
            self.layers.append(fully_shard(nn.Sequential(layer), mesh=mesh, ignored_params=whole))
            self._watch(layer, len(self.layers) - 1)
        if not self.layers:
            raise ConfigError(
                f"{type(policy.base).__name__} has no list of layers to shard. Use recipes/accelerate/ddp.yaml."
            )
        for tensor in chain(policy.parameters(), policy.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)

    def _watch(self, layer: nn.Module, number: int) -> None:
        """Have a layer gathered before its forward and before its backward."""

        def before(module: nn.Module, args: Any) -> None:
            self.need(number)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.need(number))

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)

    def need(self, number: int) -> None:
        """Return once a layer is whole here; other layers that other processes need come first."""
        while self.held != number:
            self._round(number)

    def wait(self) -> None:
        """Help the others gather what they need until all processes wait, and leave no layer whole."""
        while self._round(_NONE) != _NONE:
            pass
        self._release()

    def _round(self, wanted: int) -> int:
        """Agree on the layer to gather next, gather it with all the others, and return its number."""
        if self._failure is not None:
            raise self._failure
        word = torch.tensor(wanted)
        distributed.all_reduce(word, distributed.ReduceOp.MAX, group=self._words)
        number = int(word)
        if number not in (_NONE, self.held):
            self._release()
            try:
                self.layers[number].unshard()
            except Exception as error:
                # The others are in the middle of it: going on would pair this gather with the next layer's.
                self._failure = RunError(
                    f"Gathering layer {number} of the model failed: {error}. The run cannot go on."
                )
                raise self._failure from error
            self.held, self.gathers = number, self.gathers + 1
        return number

    def _release(self) -> None:
        if self.held != _NONE:
            self.layers[self.held].reshard()
        self.held = _NONE


def layer_bytes(policy: Policy) -> list[int]:
    """Return the bytes of frozen weights of every layer that would be cut over the processes."""
    return [sum(p.nbytes for p in layer.parameters() if not p.requires_grad) for layer in _layers(policy)]


def _layers(policy: Policy) -> Iterator[nn.Module]:
    """Yield the members of the model's outermost lists of layers that hold frozen weights, the projector's apart."""

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if child is policy.projector:
                continue
            if isinstance(child, nn.ModuleList):
                yield from (one for one in child if any(not p.requires_grad for p in one.parameters()))
            else:
                yield from inside(child)

    yield from inside(policy.base)

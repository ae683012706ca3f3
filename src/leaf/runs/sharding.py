"""Experimental: frozen layers in pieces. Each process keeps a share of every layer; all gather one while it is needed.

This was tested with processes on a CPU over gloo only, never on a GPU. Check a short run of your own against one
without it before you rely on it.

FSDP2 (torch.distributed.fsdp.fully_shard) stores and gathers the layers. Its timing is not used, because it takes for
granted that all processes run the same layers in the same order. Here they do not: one decodes longer, another takes
more micro-batches or tries again. So processes gather on demand, in rounds. In each round a process names the layer it
needs, or none if it waits at a collective of the run. All gather the largest number named, and whoever needed another
layer asks again in the next round. No order of work can make that hang. Processes in step gather nothing twice: where
one is ahead in a forward, the others wait for it, and all begin the next forward together.

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
    """Cut the frozen layers of a policy over all processes, and gather them while they are needed.

    The policy may be on the CPU: each layer goes to `device` on its own, and only a share of it stays there.

    Args:
        policy: the policy, its adapter on it; changed in place.
        device: where it is to run.

    Attributes:
        held: the layer that is whole now, the same number in every process; -1 for none.
        gathers: how many times a layer was gathered.

    Raises:
        ConfigError: the model has no list of layers with frozen weights.
    """

    def __init__(self, policy: Policy, device: torch.device):
        self.held, self.gathers = _NONE, 0
        self.layers: list[FSDPModule] = []
        self._failure: Exception | None = None
        # The processes agree on the next layer on the CPU, so that none has to wait for its GPU.
        self._words = distributed.new_group(backend="gloo")
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for layer in _layers(policy):
            whole = {p for p in layer.parameters() if p.requires_grad or p.ndim == 0}  # FSDP takes no scalars
            # FSDP's timing is in the forward of the module that it wraps. This one is around the layer and outside the
            # model, so its forward never runs.
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
        """Gather a layer before its forward and before its backward."""

        def before(module: nn.Module, args: Any) -> None:
            self.need(number)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            # The gradient of a layer's output arrives just before the backward of the layer.
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.need(number))

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)

    def need(self, number: int) -> None:
        """Take part in rounds until a layer is whole here; layers with larger numbers come first."""
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
        word = torch.tensor(wanted)  # the largest wins: _NONE is below all layers, so a layer goes before waiting
        distributed.all_reduce(word, distributed.ReduceOp.MAX, group=self._words)
        number = int(word)
        if number not in (_NONE, self.held):
            self._release()
            try:
                self.layers[number].unshard()
            except Exception as error:
                # The others are in the middle of it: another try here would meet their gather of the next layer.
                self._failure = RunError(
                    f"Gathering layer {number} of the model failed: {error}. The run cannot continue."
                )
                raise self._failure from error
            self.held, self.gathers = number, self.gathers + 1
        return number

    def _release(self) -> None:
        if self.held != _NONE:
            self.layers[self.held].reshard()
        self.held = _NONE


def layer_bytes(policy: Policy) -> list[int]:
    """Count the bytes of frozen weights in every layer that would be cut over the processes."""
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

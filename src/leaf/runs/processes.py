"""What the processes of one run do together: each works on its own prompts, and gradients are added at every update.

A process holds the whole model or, under FSDP2, a share of the frozen layers (leaf.runs.sharding); what is trained is
whole in every process. The loss of an update is a sum over groups whose weights count the whole update. So gradients
are added, not averaged, and the result is that of one process with all the prompts.

All processes have to call the same collectives in the same order: one that calls another, or none, leaves the others
waiting for ever. Between two collectives each works alone, and how many micro-batches it takes or whether it runs out
of memory and tries again does not concern the others. With one process, everything here is the identity.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object, parse_flag_from_env
from torch import Tensor, distributed
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from leaf.errors import ConfigError, RunError, Unavailable
from leaf.model.policy import Policy
from leaf.runs.sharding import Shards

T = TypeVar("T")
_ALONE = (DistributedType.NO,)
_PARALLEL = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
_BUCKET = 64 * 2**20  # bytes of gradients exchanged at once


class Processes:
    """Collective operations between the processes of a run.

    Attributes:
        index, count: which of how many processes this one is.
        sharded: whether the launcher asks for frozen layers in pieces (FSDP2; experimental).

    Raises:
        ConfigError: the launcher asks for DeepSpeed, FSDP1 or an option of FSDP2 that leaf does not have.
    """

    def __init__(self, accelerator: Accelerator):
        kind = accelerator.distributed_type
        if kind not in _ALONE + _PARALLEL:
            raise ConfigError(
                f"The launcher's configuration asks for {kind.value}; leaf trains with MULTI_GPU, MULTI_CPU or FSDP "
                "(version 2). In place of DeepSpeed ZeRO-2 use recipes/accelerate/ddp.yaml: gradients and moments are "
                "those of the adapter alone. In place of ZeRO-3 use recipes/accelerate/fsdp2.yaml."
            )
        # On the CPU Accelerate says MULTI_CPU under FSDP too, so the launcher's own variable is read besides.
        self.sharded = kind is DistributedType.FSDP or parse_flag_from_env("ACCELERATE_USE_FSDP")
        self.sharded = self.sharded and kind not in _ALONE
        if self.sharded:
            _check(FullyShardedDataParallelPlugin())
        self._shards: Shards | None = None
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.count == 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.index == 0

    def place(self, policy: Policy) -> None:
        """Move a policy to this process's device; its frozen layers in pieces, where the launcher asks for that."""
        if self.sharded:
            self._shards = Shards(policy, self.device)
        else:
            policy.to(self.device)

    def _meet(self) -> None:
        """Ahead of a collective, help the others gather the layers that they still need."""
        if self._shards is not None:
            self._shards.wait()

    def positions(self, size: int) -> range:
        """Tell which of `size` things, in the order of all processes, are this one's."""
        # One after the other in turn, so that the groups of a small update come from different processes.
        return range(self.index, size, self.count)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes, in float64."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def max(self, values: Mapping[str, float]) -> dict[str, float]:
        """Find the largest of numbers over all processes, which give them the same names in the same order."""
        return dict(zip(values, self._reduced(list(values.values()), distributed.ReduceOp.MAX), strict=True))

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.alone:
            return list(values)
        self._meet()
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, operation)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Collect what every process gives, in order; values travel as Python objects, so keep them small."""
        if self.alone:
            return [value]
        self._meet()
        return gather_object([value])

    def together(self, action: Callable[[], T]) -> T:
        """Run an action in every process; where it fails in one, it fails in all.

        The action has no collectives. The exchange after it is one that every process reaches, even one that failed;
        without it the others would go on to the next collective and wait for ever.

        Raises:
            RunError: it failed in another process. The process in which it failed raises its own error.
            Unavailable: it failed for want of a server, in every process in which it failed; all raise it.
        """
        if self.alone:
            return action()
        error: Exception | None = None
        outcome: Any = None
        try:
            outcome = action()
        except Exception as failure:  # raised again below, once the others know
            error = failure
        told = None if error is None else (f"{type(error).__name__}: {error}", isinstance(error, Unavailable))
        said = [(index, *one) for index, one in enumerate(self.gather(told)) if one is not None]
        # Of one kind in all, since the loop saves a run after it, which takes all processes.
        kind = Unavailable if all(passes for *_, passes in said) else RunError
        if isinstance(error, Unavailable) and kind is RunError:
            raise RunError(str(error)) from error
        if error is not None:
            raise error
        for index, text, _ in said:
            raise kind(f"Process {index} of {self.count} failed, so all stop. There: {text}")
        return outcome

    def on_main(self, action: Callable[[], None]) -> None:
        """Run an action in the main process while the others wait; where it fails, all stop."""
        self.together(action if self.main else lambda: None)

    def agree(self, parameters: Sequence[Tensor]) -> None:
        """Copy the main process's values of the trained parameters to all."""
        if not self.alone:
            self._meet()
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), 0)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over all processes; one that is missing counts as 0."""
        if self.alone:
            return
        self._meet()
        batch: list[Tensor] = []
        for i, parameter in enumerate(parameters):
            # Which gradients are there differs between processes: one without completions in this part has none.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            batch.append(parameter.grad)
            # Joined, because each exchange has a cost of its own. Where a batch ends depends on the parameters alone,
            # so all processes exchange as often.
            if sum(gradient.nbytes for gradient in batch) >= _BUCKET or i + 1 == len(parameters):
                joined = torch.cat([gradient.flatten() for gradient in batch])
                distributed.all_reduce(joined)
                for gradient, part in zip(batch, joined.split([g.numel() for g in batch]), strict=True):
                    gradient.copy_(part.view_as(gradient))
                batch = []


def leave() -> None:
    """Shut down torch.distributed. Call it last, after the trainer is gone; with one process it does nothing.

    gloo's threads live as long as their group. One that still frees a tensor while Python shuts down aborts the
    process, with all work done (pytorch/pytorch#179291). Do not call it after a failure: the others may be in the
    middle of a collective.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()  # a tracker may have done so already
    _clear_sharding_prop_cache()  # torch caches the layouts of shares, which refer to the group
    gc.collect()  # a sharded policy and its hooks refer to each other and to a group of their own


def _check(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse options of the launcher's configuration that leaf does not have."""
    if plugin.fsdp_version != 2:
        raise ConfigError(f"fsdp_version is {plugin.fsdp_version}; leaf shards with version 2. Set fsdp_version: 2.")
    unmet = {
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
    }
    for name in (name for name, asked in unmet.items() if asked):
        raise ConfigError(
            f"The launcher's configuration sets {name}, which leaf does not have: every process reads the model and "
            "keeps its share on its own device. Set it to false; to recompute activations, set "
            "gradient_checkpointing: true in the recipe."
        )

"""What the processes of one run do together: data parallelism, one exchange of gradients per optimiser step.

Every process works on its own prompts, with the whole model or, under FSDP2, with frozen layers in pieces that are
gathered on demand (leaf.runs.sharding); what is trained is whole in every process. A loss is a sum over groups whose
weights count the whole update, so gradients are added, not averaged, and one process with all the prompts would get
the same.
Between collectives a process works alone: the number of its micro-batches, running out of memory and trying again
concern nobody else. With one process everything here is the identity.
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

from leaf.errors import ConfigError, RunError
from leaf.model.policy import Policy
from leaf.runs.sharding import Shards

T = TypeVar("T")
_ALONE = (DistributedType.NO,)
_PARALLEL = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
_BUCKET = 64 * 2**20  # bytes of gradients exchanged at once


class Processes:
    """Speak with the other processes of a run.

    Attributes:
        index, count: which of how many this one is.
        sharded: whether the launcher asks for frozen layers in pieces (FSDP2).

    Raises:
        ConfigError: the launcher asks for DeepSpeed, FSDP1 or an option of FSDP2 that is not there.
    """

    def __init__(self, accelerator: Accelerator):
        kind = accelerator.distributed_type
        if kind not in _ALONE + _PARALLEL:
            raise ConfigError(
                f"The launcher's configuration asks for {kind.value}; leaf trains with MULTI_GPU, MULTI_CPU or FSDP "
                "(version 2). In place of DeepSpeed ZeRO-2 use recipes/accelerate/ddp.yaml: gradients and moments are "
                "those of the adapter alone. In place of ZeRO-3 use recipes/accelerate/fsdp2.yaml."
            )
        # On the CPU Accelerate says MULTI_CPU even so, and reads itself what its launcher left in the environment.
        self.sharded = kind is DistributedType.FSDP or parse_flag_from_env("ACCELERATE_USE_FSDP")
        self.sharded = self.sharded and kind not in _ALONE
        if self.sharded:
            _check(FullyShardedDataParallelPlugin())
        self._shards: Shards | None = None
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device

    @property
    def alone(self) -> bool:
        """Return whether there is one process only."""
        return self.count == 1

    def shard(self, policy: Policy) -> None:
        """Cut the frozen layers of a policy over the processes where the launcher asks for it."""
        if self.sharded:
            self._shards = Shards(policy, self.device)

    def _meet(self) -> None:
        """Wait for the others ahead of a collective, and take part in gathering what they still need."""
        if self._shards is not None:
            self._shards.wait()

    def positions(self, size: int) -> range:
        """Return which of `size` things, in global order, are this process's."""
        return range(self.index, size, self.count)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes, in float64."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def max(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the largest of numbers over all processes, by the same names everywhere."""
        return dict(zip(values, self._reduced(list(values.values()), distributed.ReduceOp.MAX), strict=True))

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.alone:
            return list(values)
        self._meet()
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, operation)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Return what every process gave, in order; values travel as Python objects, so keep them small."""
        if self.alone:
            return [value]
        self._meet()
        return gather_object([value])

    def together(self, action: Callable[[], T]) -> T:
        """Run an action without collectives in every process; where it fails in one, it fails in all.

        Raises:
            RunError: it failed in another process; in the one where it did, its own error.
        """
        if self.alone:
            return action()
        error: Exception | None = None
        outcome: Any = None
        try:
            outcome = action()
        except Exception as failure:  # raised again below, once the others know
            error = failure
        said = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for index, text in enumerate(said):
            if text is not None:
                raise RunError(f"Process {index} of {self.count} failed, so all stop. There: {text}")
        return outcome

    def agree(self, parameters: Sequence[Tensor]) -> None:
        """Give every process the main one's values of the trained parameters."""
        if not self.alone:
            self._meet()
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), 0)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over all processes; one that is missing counts as 0.

        The gradients travel joined, some 64 MiB at once: the number of exchanges depends on the parameters alone.
        """
        if self.alone:
            return
        self._meet()
        batch: list[Tensor] = []
        for i, parameter in enumerate(parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            batch.append(parameter.grad)
            if sum(gradient.nbytes for gradient in batch) >= _BUCKET or i + 1 == len(parameters):
                joined = torch.cat([gradient.flatten() for gradient in batch])
                distributed.all_reduce(joined)
                for gradient, part in zip(batch, joined.split([g.numel() for g in batch]), strict=True):
                    gradient.copy_(part.view_as(gradient))
                batch = []


def leave() -> None:
    """Part from the other processes at the end of a program, once nothing refers to its trainer any more.

    gloo's threads live as long as a group does, and one that still lets go of a tensor while Python shuts down aborts
    the process, with all work done (pytorch/pytorch#179291). With one process this does nothing. After a failure
    the others may be in the middle of a collective: end without it.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()  # where a tracker has not done so already
    _clear_sharding_prop_cache()  # torch remembers the layouts of shares, and with them the group
    gc.collect()  # a sharded policy and its hooks refer to each other, and to a group of their own


def _check(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse what would not be done, or would be done differently, from what the launcher's configuration says."""
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
            "keeps its share on its own device. Set it to false; recomputing activations is gradient_checkpointing in "
            "the recipe."
        )

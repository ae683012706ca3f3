"""What the processes of one run do together: plain data parallelism, one exchange of gradients per optimiser step.

Every process holds the whole model and works on its own prompts. A loss is a sum over groups whose weights count the
whole update, so gradients are added, not averaged, and one process with all the prompts would get the same. Between
collectives a process works alone: the number of its micro-batches, running out of memory and trying again concern
nobody else. With one process everything here is the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, distributed

from leaf.errors import ConfigError, RunError

T = TypeVar("T")
_ALONE = (DistributedType.NO,)
_PARALLEL = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_BUCKET = 64 * 2**20  # bytes of gradients exchanged at once


class Processes:
    """Speak with the other processes of a run.

    Attributes:
        index, count: which of how many this one is.

    Raises:
        ConfigError: the launcher asks for sharded weights (FSDP, DeepSpeed), which the sampler cannot decode with.
    """

    def __init__(self, accelerator: Accelerator):
        kind = accelerator.distributed_type
        if kind not in _ALONE + _PARALLEL:
            raise ConfigError(
                f"The launcher's configuration asks for {kind.value}; leaf trains with data parallelism (MULTI_GPU or "
                "MULTI_CPU), every process with the whole frozen model. Use recipes/accelerate/ddp.yaml; where the "
                "model does not fit one GPU, dtype: bfloat16 and gradient_checkpointing: true."
            )
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device

    @property
    def alone(self) -> bool:
        """Return whether there is one process only."""
        return self.count == 1

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
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, operation)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Return what every process gave, in order; values travel as Python objects, so keep them small."""
        return [value] if self.alone else gather_object([value])

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
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), 0)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over all processes; one that is missing counts as 0.

        The gradients travel joined, some 64 MiB at once: the number of exchanges depends on the parameters alone.
        """
        if self.alone:
            return
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

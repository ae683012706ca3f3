"""Where completions come from: the policy itself, or an engine that lives elsewhere and serves the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from leaf.model.distinct import sample_distinct
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import Generators, Group, sample


@dataclass(frozen=True)
class Drawing:
    """How completions are drawn; the fields are the arguments of `leaf.model.sampling.sample`.

    Attributes:
        keep_prompts: let the local sampler keep its run of the prompts for the update (leaf.model.kept).
        keep_entries: let it keep what entered the first adapted layer for scoring and update (leaf.model.below).
        distinct: draw without replacement (leaf.model.distinct); then top_p, top_k, greedy and entropy are without use.
    """

    num_completions: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    greedy: bool | Sequence[bool] = False
    entropy: bool = False
    keep_prompts: bool = False
    keep_entries: bool = False
    distinct: bool = False


class Sampler(Protocol):
    """What draws completions for rollouts, validation and evaluation.

    A loop calls `begin` once, `sync` whenever the weights have changed, `sample` as often as it likes, and `close` at
    the end. A sampler of several processes is one object in each; each samples its own prompts.
    """

    @property
    def exact(self) -> bool:
        """Whether it draws from the policy's own code, so that its surprisal is the policy's log-probability."""
        ...

    def begin(self, policy: Policy, interrupt: Callable[[], None] = lambda: None) -> list[str]:
        """Get ready for a policy, refuse what does not fit, and return lines for a person.

        Args:
            policy: is to be drawn from.
            interrupt: called now and then while completions are drawn; what it raises ends the drawing.
        """
        ...

    def sync(self, policy: Policy, version: int, *, push: bool = True) -> None:
        """Draw from the policy's present weights from now on.

        Args:
            policy: has the weights.
            version: how many steps have made them; groups say it.
            push: whether this process brings the weights to the engine. Of several processes one does, before the
                others call.
        """
        ...

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing, generators: Generators = None
    ) -> list[Group]:
        """Draw a group for each prompt; the generators decide what is drawn, as in `leaf.model.sampling.sample`."""
        ...

    def close(self) -> None:
        """Let go of what the sampler holds."""
        ...


class AheadSampler(Sampler, Protocol):
    """A sampler that can draw in another thread while the policy is trained."""

    def start(
        self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing, generators: Generators = None
    ) -> Callable[[], list[Group]]:
        """Settle what `sample` draws and from which weights, and give a function that draws it, in any thread."""
        ...


class LocalSampler:
    """Draw from the policy itself, in this process."""

    exact = True

    def begin(self, policy: Policy, interrupt: Callable[[], None] = lambda: None) -> list[str]:
        """Do nothing: the policy is ready."""
        return []

    def sync(self, policy: Policy, version: int, *, push: bool = True) -> None:
        """Do nothing: the weights are the policy's own."""

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing, generators: Generators = None
    ) -> list[Group]:
        """Draw independent completions with `sample`, distinct ones with `sample_distinct`."""
        limits: dict[str, Any] = {
            "num_completions": drawing.num_completions,
            "max_new_tokens": drawing.max_new_tokens,
            "temperature": drawing.temperature,
            "keep_prompts": drawing.keep_prompts,
            "keep_entries": drawing.keep_entries,
        }
        if drawing.distinct:
            return sample_distinct(policy, prompts, _one_each(generators), **limits)
        return sample(
            policy,
            prompts,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
            greedy=drawing.greedy,
            entropy=drawing.entropy,
            generator=generators,
            **limits,
        )

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def _one_each(generators: Generators) -> list[torch.Generator]:
    """Take one generator for each prompt, as distinct completions need."""
    assert isinstance(generators, Sequence)
    return [one for one in generators if isinstance(one, torch.Generator)]

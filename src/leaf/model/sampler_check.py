"""Check that a sampler elsewhere draws from the policy: its log-probabilities have to be the policy's own.

A fresh adapter changes nothing, since its second factor is zero. A server that ignores adapters would pass a check with
it, and be several nats off after the first update. So the check is made with random weights in the adapter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import peft
import torch
from torch import Tensor

from leaf.errors import ModelError
from leaf.model.checks import TOLERANCE
from leaf.model.policy import Policy, Prompt
from leaf.model.sampler import Drawing, Sampler
from leaf.model.sampling import Group, sample
from leaf.model.scoring import score

SEEN = 4  # times the tolerance that random weights move log-probabilities by, at least
_SCALES = 20  # of random weights that are tried


def tolerance_of(policy: Policy, given: float | None = None) -> float:
    """Choose the largest mean |log π − log μ| to allow: what is given, or what the policy's precision allows."""
    return TOLERANCE[policy.base.dtype] if given is None else given


@contextmanager
@torch.no_grad()
def random_adapter(policy: Policy, prompts: Sequence[Prompt], allowed: float) -> Iterator[float]:
    """Put random weights into the adapter inside the block, and its own back after it.

    They are scaled until log-probabilities move by once to twice `SEEN` times what is allowed to differ. Large weights
    break a deep model, and half precision differs by more on a broken one than on any that is trained. The same policy
    gets the same ones in every process.

    Yields:
        How far they move log-probabilities, in nats per token.

    Raises:
        ModelError: no scale moves them far enough to tell.
    """
    adapted = {name: p for name, p in policy.named_parameters() if ".lora_" in name}
    own = {name: p.detach().clone() for name, p in adapted.items()}
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(p.shape, generator=generator) for name, p in adapted.items() if "lora_B" in name}
    with policy.reference():
        groups = sample(policy, prompts, num_completions=2, max_new_tokens=8, generator=generator)
        reference = _scores(policy, groups)

    def put(scale: float) -> float:
        for name, values in noise.items():
            adapted[name].copy_(scale * values)
        return _apart(_scores(policy, groups), reference, groups)

    try:
        moved, scale, low, high = 0.0, 1e-3, 0.0, None
        for _ in range(_SCALES):
            moved = put(scale)
            if SEEN * allowed <= moved <= 2 * SEEN * allowed:
                break
            low, high = (scale, high) if moved < SEEN * allowed else (low, scale)
            scale = 2 * scale if high is None else (low + high) / 2
        else:
            moved = moved if high is None else put(high)  # nothing in between was found
        if moved < SEEN * allowed:
            raise ModelError(
                f"Random weights in the adapter move log-probabilities by only {moved:.2g} nats per token, and a "
                f"sampler may be {allowed:g} off, so no check can tell whether it uses them. Lower "
                "sampler_options.tolerance, or put the adapter on more layers (lora_layers)."
            )
        yield moved
    finally:
        for name, values in own.items():
            adapted[name].copy_(values)


@torch.no_grad()
def check_sampler(policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], allowed: float) -> str:
    """Draw some completions and compare their log-probabilities with the policy's; return a line.

    Args:
        policy: its weights are those that the sampler was told of last.
        sampler: draws.
        prompts: a few.
        allowed: largest mean difference, in nats per token.

    Raises:
        ModelError: they differ by more.
    """
    draws = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    groups = sampler.sample(policy, prompts, Drawing(4, 12, policy.temperature), draws)
    drawn = [-group.surprisal for group in groups]
    apart = _apart(drawn, _scores(policy, groups), groups)
    if not apart <= allowed:
        with policy.reference() if isinstance(policy.model, peft.PeftModel) else nullcontext():
            bare = _apart(drawn, _scores(policy, groups), groups)
        why = (
            f"They are those of the bare model ({bare:.1g} nats away): the server ignores the adapter."
            if bare <= allowed
            else "The server has another language model, another precision or another temperature than the policy."
        )
        raise ModelError(
            f"The sampler's log-probabilities differ from the policy's by {apart:.2g} nats per token; at most "
            f"{allowed:g} is allowed. {why} docs/vllm_rollouts.md starts a server that fits."
        )
    return f"{apart:.1e} nats per token (allowed {allowed:g})"


def _scores(policy: Policy, groups: Sequence[Group]) -> list[Tensor]:
    policy.eval()
    return score(policy, [group.prompt for group in groups], [group.tree for group in groups]).log_probs


def _apart(ones: Sequence[Tensor], others: Sequence[Tensor], groups: Sequence[Group]) -> float:
    """Compute the mean size of differences (K, T) over the real tokens."""
    total = sum(
        float(((one.cpu() - other.cpu()).abs() * (group.tree.node >= 0)).sum())
        for one, other, group in zip(ones, others, groups, strict=True)
    )
    return total / sum(int(group.lengths.sum()) for group in groups)

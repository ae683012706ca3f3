"""A reward that knows how long a completion is: 0 up to a length, then less and less (DAPO's overlong shaping)."""

from collections.abc import Callable, Sequence
from typing import Any

from leaf.errors import ConfigError, RewardError, shown


def overlong_reward(max_length: int, cache: int) -> Callable[..., list[float]]:
    """Make DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), to be added to a reward of the answer.

    Of a completion of |y| tokens, with L_max = `max_length` and L_cache = `cache`:

        0                                 |y| ≤ L_max − L_cache
        ((L_max − L_cache) − |y|) / L_cache    L_max − L_cache < |y| ≤ L_max
        −1                                |y| > L_max, or the length limit cut the completion

    The end-of-sequence token counts. The paper has L_max = 20480 and L_cache = 4096.

    Args:
        max_length: L_max, as a rule the recipe's max_new_tokens.
        cache: L_cache, over how many tokens the punishment grows.

    Raises:
        ConfigError: the lengths are no whole numbers with 0 < cache ≤ max_length.
    """
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (max_length, cache))
    if not (whole and 0 < cache <= max_length):
        raise ConfigError(
            f"The reward overlong has max_length {shown(max_length)} and cache {shown(cache)}; allowed are whole "
            "numbers of tokens, cache from 1 to max_length."
        )
    free = max_length - cache

    def overlong(
        completions: Sequence[Any],
        completion_lengths: Sequence[int | None] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        truncated: Sequence[bool | None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Punish each completion for its length; TRL gives `completion_ids` alone."""
        lengths = completion_lengths
        if lengths is None and completion_ids is not None:
            lengths = [len(ids) for ids in completion_ids]
        if lengths is None or any(length is None for length in lengths):
            raise RewardError(
                "The reward overlong needs the length of every completion in tokens, and these have none. They are of "
                "another program or an earlier version: decode them again, or leave overlong out."
            )
        cut = truncated or [False] * len(lengths)
        return [
            -1.0 if was_cut else -min(max(int(length or 0) - free, 0), cache) / cache
            for length, was_cut in zip(lengths, cut, strict=True)
        ]

    return overlong

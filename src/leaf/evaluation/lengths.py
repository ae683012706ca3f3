"""How long predictions are, as metrics that read no reference: words, tokens, and the share that the limit cut."""

from collections.abc import Sequence

import numpy as np

from leaf.errors import DataError
from leaf.evaluation.bootstrap import Scored, mean_of_scored

# Metric → its signature. They say how a system answers, not how well, so none of them chooses the best adapter.
LENGTHS = {
    "words": "words|mean of a prediction|split at white space",
    "tokens": "tokens|mean of a prediction|the model's own, end token counted",
    "truncated": "truncated|share of the predictions that max_new_tokens cut",
}

NEUTRAL = ("words", "tokens")  # neither more nor less of them is better


def scored_length(
    name: str,
    system: str,
    passes: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[int | None]],
    truncated: Sequence[Sequence[bool | None]],
) -> tuple[Scored, str]:
    """Compute a metric of `LENGTHS` and its signature.

    Args:
        name: of the metric.
        system: what a message calls the predictions.
        passes: texts per pass, in the order of the items.
        tokens, truncated: of each; None where a file does not say it.

    Raises:
        DataError: the file does not say it.
    """
    found = {"words": [[len(text.split()) for text in texts] for texts in passes], "tokens": tokens}
    values = found.get(name, truncated)
    if any(value is None for one in values for value in one):
        raise DataError(
            f"{system} does not say {name} of every prediction: another program or an earlier version wrote it. Decode "
            f"it again, or leave {name} out."
        )
    arrays = [np.array([[float(value or 0), 1.0] for value in one]) for one in values]
    return Scored(mean_of_scored, arrays, less_is_better=name == "truncated"), LENGTHS[name]

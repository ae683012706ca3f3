"""The built-in reward functions, in TRL's signature: `(completions, reference, **columns) -> one float per completion`.

They compare each completion with its reference. TRL's GRPOTrainer takes them as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.errors import DataError
from leaf.text import edits, exact_match, fold_whitespace, rouge_f, token_f1

RewardFunction = Callable[..., Sequence[float | None]]

# Sentence BLEU as sacrebleu.sentence_bleu: nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp.
_BLEU = BLEU(effective_order=True)
# Sentence chrF as sacrebleu.sentence_chrf: nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no.
_CHRF = CHRF()


def _built_in(name: str, score: Callable[[str, str], float]) -> RewardFunction:
    """Make the reward function that scores each completion against its reference, white space folded in both."""

    def function(completions: Sequence[str], reference: Sequence[str], **columns: Any) -> list[float]:
        if len(completions) != len(reference):
            raise DataError(f"{len(completions)} completions came with {len(reference)} references; give one for each.")
        for i, theirs in enumerate(reference):
            if not isinstance(theirs, str) or not theirs.strip():
                raise DataError(f"Reference {i} is {theirs!r}; every completion needs a text to be compared with.")
        pairs = zip(completions, reference, strict=True)
        return [score(fold_whitespace(ours), fold_whitespace(theirs)) for ours, theirs in pairs]

    function.__name__ = function.__qualname__ = name  # TRL logs a reward under this name
    return function


def _sacrebleu(metric: BLEU | CHRF, completion: str, reference: str) -> float:
    return min(metric.sentence_score(completion, [reference]).score / 100, 1.0)  # a copy may be 1 + 4e-16


def _accuracy(completion: str, reference: str, *, characters: bool) -> float:
    """Compute 1 minus the error rate, at least 0: a completion may need more edits than its reference has words."""
    wrong, length = edits(completion, reference, characters=characters)
    return max(0.0, 1.0 - wrong / length)


# All are in [0, 1]. `wer` and `cer` are 1 minus the error rate, at least 0: more is better, as for the others.
REWARDS: dict[str, RewardFunction] = {
    name: _built_in(name, score)
    for name, score in {
        "bleu": partial(_sacrebleu, _BLEU),
        "chrf": partial(_sacrebleu, _CHRF),
        "rouge_l": partial(rouge_f, "rougeL"),
        "wer": partial(_accuracy, characters=False),
        "cer": partial(_accuracy, characters=True),
        "exact_match": exact_match,
        "token_f1": token_f1,
    }.items()
}

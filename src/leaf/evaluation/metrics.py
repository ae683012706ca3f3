"""Corpus metrics that need nothing but this package and its dependencies: BLEU, chrF, ROUGE, matches, error rates.

Those that need data or a model (METEOR, BERTScore, COMET) are in leaf.evaluation.model_metrics;
leaf.evaluation.registry finds them all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.evaluation.bootstrap import Metric, percentage
from leaf.text import ROUGES, edits, exact_match, rouge_f, token_f1


def _sacrebleu(name: str, kind: type[BLEU] | type[CHRF]) -> Metric:
    """Define corpus BLEU or chrF with sacreBLEU's defaults (BLEU without effective order, as corpus_bleu)."""
    scorer = kind()

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        # sacreBLEU's own statistics of a sentence; corpus_score adds up the same.
        return np.array(scorer._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)

    def total(sums: np.ndarray) -> float:
        return float(scorer._aggregate_and_compute([np.rint(sums).astype(int).tolist()]).score)

    def signature(lowercase: bool) -> str:
        cased = kind(lowercase=lowercase)
        cased.corpus_score(["a"], [["a"]])  # sacreBLEU knows the number of references only after scoring
        return f"{name}|{cased.get_signature()}"

    return Metric(items, total, signature)


def _error_rate(characters: bool) -> Metric:
    """Define the word or character error rate over the corpus: all edits over all reference words or characters."""
    pair = partial(edits, characters=characters)
    name = "cer" if characters else "wer"
    return _ratio(pair, f"{name}|punctuation:yes", "jiwer", keeps_case=True, less_is_better=True)


def _ratio(
    pair: Callable[[str, str], tuple[float, float]],
    signature: str,
    package: str,
    *,
    keeps_case: bool = False,
    less_is_better: bool = False,
) -> Metric:
    """Define 100 times the sum of the pairs' first numbers over the sum of their second ones."""

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return np.array([pair(p, r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)

    def described(lowercase: bool) -> str:
        case = "mixed" if keeps_case and not lowercase else "lc"
        return f"{signature}|case:{case}|{package}:{metadata.version(package)}"

    return Metric(items, percentage, described, less_is_better=less_is_better)


def _mean(function: Callable[[str, str], float], signature: str, package: str) -> Metric:
    """Define 100 times the mean of a value per item; such a function folds case itself."""
    return _ratio(lambda prediction, reference: (function(prediction, reference), 1.0), signature, package)


METRICS: dict[str, Metric] = {
    "bleu": _sacrebleu("bleu", BLEU),
    "chrf": _sacrebleu("chrf", CHRF),
    **{name: _mean(partial(rouge_f, name), f"{name}|f1|stemmer:no|tok:a-z0-9", "rouge-score") for name in ROUGES},
    "exact_match": _mean(exact_match, "exact_match|punctuation:no", "leaf-speech"),
    "token_f1": _mean(token_f1, "token_f1|punctuation:no", "leaf-speech"),
    "wer": _error_rate(characters=False),
    "cer": _error_rate(characters=True),
}

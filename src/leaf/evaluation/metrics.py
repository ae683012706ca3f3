"""Corpus metrics that need nothing but this package and its dependencies: BLEU, chrF, ROUGE, matches, error rates.

Those that need data or a model (METEOR, BERTScore, COMET) are in leaf.evaluation.model_metrics;
leaf.evaluation.registry finds them all.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from itertools import zip_longest
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.bleu import AUTO, bleu_scorer, common_tokenizer, short_references
from leaf.credit.registry import check_options
from leaf.errors import ConfigError
from leaf.evaluation.bootstrap import Metric, percentage
from leaf.normalising import normaliser
from leaf.rewards.functions import chrf_scorer
from leaf.text import NUMBERS_KEPT, ROUGES, edits, exact_match, rouge_f, token_f1


def _sacrebleu(name: str, scorer: BLEU | CHRF, cased: Callable[[bool], BLEU | CHRF]) -> Metric:
    """Define a corpus metric of sacreBLEU; `cased` makes its scorer, with case folded or not."""

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        # sacreBLEU's own statistics of a sentence; corpus_score adds up the same.
        return np.array(scorer._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)

    def multi_items(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        # A stream for every place in the lists, None where a list has ended.
        streams: Any = list(zip_longest(*references))
        return np.array(scorer._extract_corpus_statistics(list(predictions), streams), dtype=np.float64)

    def signature(lowercase: bool) -> str:
        one = cased(lowercase)
        one.corpus_score(["a"], [["a"]])  # sacreBLEU knows the number of references only after scoring
        return f"{name}|{one.get_signature()}"

    return Metric(items, partial(_total, scorer), signature, multi_items=multi_items)


def _total(scorer: BLEU | CHRF, sums: np.ndarray) -> float:
    return float(scorer._aggregate_and_compute([np.rint(sums).astype(int).tolist()]).score)


def _bleu(*, tokenize: str = AUTO, effective_order: str = AUTO, lowercase: str = "no") -> Metric:
    """Define corpus BLEU with sacreBLEU's defaults, fitted to language and length of the references.

    Args:
        tokenize: of sacreBLEU; `auto` is what the language of the references needs, and 13a where none is stated.
        effective_order: `yes`, `no` (as corpus_bleu has it), or `auto`: yes where at least half of the references have
            fewer than four tokens. Without it, BLEU is 0 as long as the predictions have no four tokens either.
        lowercase: `yes` folds case whatever is asked for beside it, as validation in the published runs does.
    """
    folds = _yes_or_no("lowercase", lowercase)
    if effective_order not in (AUTO, "yes", "no"):
        raise ConfigError(f"effective_order is {effective_order!r}; allowed are {AUTO}, yes, no.")

    def of(tokenizer: str, effective: bool) -> Metric:
        made = partial(bleu_scorer, tokenizer, effective_order=effective)
        found = _sacrebleu("bleu", made(lowercase=folds), lambda lowercase: made(lowercase=lowercase or folds))
        return replace(found, item_total=partial(_total, bleu_scorer(tokenizer, lowercase=folds)))

    def fit(references: Sequence[str], languages: Sequence[str | None]) -> Metric:
        tokenizer = common_tokenizer(languages) if tokenize == AUTO else tokenize
        effective = effective_order == "yes"
        if effective_order == AUTO:
            effective = 2 * short_references(bleu_scorer(tokenizer), references) >= len(references)
        return of(tokenizer, effective)

    return replace(of("13a" if tokenize == AUTO else tokenize, effective_order == "yes"), fit=fit)


def _chrf(*, char_order: int = 6, word_order: int = 0, beta: int = 2) -> Metric:
    """Define corpus chrF with sacreBLEU's defaults; `word_order` 2 makes it chrF++."""
    made = partial(chrf_scorer, char_order=char_order, word_order=word_order, beta=beta)
    return _sacrebleu("chrf", made(), lambda lowercase: made(lowercase=lowercase))


def _error_rate(name: str, *, normalise: str) -> Metric:
    """Define the word or character error rate over the corpus: all edits over all reference words or characters."""
    fold = normaliser(normalise)

    def pair(prediction: str, reference: str) -> tuple[float, float]:
        return edits(fold(prediction), fold(reference), characters=name == "cer")

    if normalise == "none":
        return _ratio(pair, f"{name}|punctuation:yes", "jiwer", keeps_case=True, less_is_better=True)
    how = "norm:whisper-en|spelling:as-is" if normalise == "whisper" else f"norm:{normalise}|{NUMBERS_KEPT}"
    package = f"|transformers:{metadata.version('transformers')}" if normalise == "whisper" else ""
    return _ratio(pair, f"{name}|{how}{package}", "jiwer", less_is_better=True)


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


_AS_WRITTEN = ("exact_match|punctuation:yes", "leaf-speech")


def _exact_match(*, punctuation: str = "no") -> Metric:
    """Define exact match; with punctuation it is that of the published code, and keeps case unless it is folded."""
    if _yes_or_no("punctuation", punctuation):
        return _ratio(lambda ours, theirs: (float(ours == theirs), 1.0), *_AS_WRITTEN, keeps_case=True)
    return _mean(exact_match, f"exact_match|punctuation:no|{NUMBERS_KEPT}", "leaf-speech")


def _yes_or_no(option: str, value: str) -> bool:
    if value not in ("yes", "no"):
        raise ConfigError(f"{option} is {value!r}; allowed are yes and no.")
    return value == "yes"


def _mean(function: Callable[[str, str], float], signature: str, package: str) -> Metric:
    """Define 100 times the mean of a value per item; such a function folds case itself."""
    return _ratio(lambda prediction, reference: (function(prediction, reference), 1.0), signature, package)


# Name → what makes the metric of its options.
MAKERS: dict[str, Callable[..., Metric]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    **{
        name: partial(_mean, partial(rouge_f, name), f"{name}|f1|stemmer:no|tok:a-z0-9", "rouge-score")
        for name in ROUGES
    },
    "exact_match": _exact_match,
    "token_f1": lambda: _mean(token_f1, f"token_f1|punctuation:no|{NUMBERS_KEPT}", "leaf-speech"),
    "wer": lambda *, normalise="none": _error_rate("wer", normalise=normalise),
    "cer": lambda *, normalise="none": _error_rate("cer", normalise=normalise),
}
METRICS: dict[str, Metric] = {name: make() for name, make in MAKERS.items()}


def made_metric(name: str, options: dict[str, str]) -> Metric:
    """Make a metric of `MAKERS` with options as they are written, all of them texts.

    Raises:
        ConfigError: there is no such option, or not with that value.
    """
    if not options:
        return METRICS[name]
    parameters = inspect.signature(MAKERS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    values: dict[str, Any] = {
        key: int(value) if isinstance(defaults.get(key), int) and value.isdecimal() else value
        for key, value in options.items()
    }
    check_options(f"metric {name}", defaults, values)
    return MAKERS[name](**values)

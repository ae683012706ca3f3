"""Find metrics by name, and score texts with them.

A metric is written as its name, with options behind it where it has some: `bleu:tokenize=zh`, `wer:normalise=basic`.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from leaf.errors import ConfigError, DataError, did_you_mean
from leaf.evaluation.bootstrap import Difference, Metric, Scored
from leaf.evaluation.lengths import LENGTHS
from leaf.evaluation.metrics import METRICS, made_metric
from leaf.evaluation.model_metrics import BUILDERS, COMET_PROGRAM, build
from leaf.evaluation.references import References, first_of, has_several, signature_of, statistics_of_several
from leaf.rewards.total import Rewards
from leaf.text import fold_whitespace

# What is computed where nobody says which metrics; validation computes these beside the recipe's best_metric.
DEFAULT_METRICS = ("bleu", "exact_match", "chrf")
REWARD = "reward"  # the weighted sum of the recipe's reward functions, as a metric (leaf.evaluation.reward_metrics)


@dataclass(frozen=True)
class Scoring:
    """Describe how predictions are scored.

    Attributes:
        metrics: metrics and rewards, as a recipe writes them.
        lowercase: compare without case.
        paths: metric → where its data or model is (meteor, bertscore, comet).
        intervals: compute bootstrap intervals too.
        rewards: the reward functions that `metrics` may name.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    lowercase: bool = False
    paths: Mapping[str, str] | None = None
    intervals: bool = False
    rewards: Rewards | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value, and the signature that reproduces it."""

    value: float
    signature: str


def name_and_options(written: str) -> tuple[str, dict[str, str]]:
    """Cut a metric as it is written, `name:key=value:key=value`, into name and options."""
    name, *parts = written.split(":")
    while parts and "=" not in parts[0]:  # the name of a function behind its file
        name = f"{name}:{parts.pop(0)}"
    options = {key: value for key, _, value in (part.partition("=") for part in parts)}
    return name, options


def is_plain(written: str) -> bool:
    """Tell whether a metric needs nothing but the texts: no data, model or function of the user's own."""
    return name_and_options(written)[0] in (*METRICS, *LENGTHS)


def metric(written: str, paths: Mapping[str, str] | None = None) -> Metric:
    """Find a metric by name.

    Args:
        written: a name of `METRICS` or leaf.evaluation.model_metrics.BUILDERS, with options behind it.
        paths: metric → where its data or model is, for those that need some.

    Raises:
        ConfigError: an unknown name or option, or a metric whose package, data or model is missing: what, and how to
            get it.
    """
    paths = paths or {}
    name, options = name_and_options(written)
    known = (*METRICS, *BUILDERS)
    if name in LENGTHS:
        raise ConfigError(
            f"{name} is a length: it says nothing of how good an answer is, and chooses no adapter. Score it with "
            f"`leaf evaluate --metrics {name}`, and take one of {', '.join(known)} here."
        )
    for given in (name, *(key for key in paths if key != COMET_PROGRAM)):
        if given not in known:
            hint = did_you_mean(given, known)
            raise ConfigError(f"The metric {given!r} is unknown.{hint} Allowed are {', '.join(known)}.")
    if name in METRICS:
        return made_metric(name, options)
    if options:
        raise ConfigError(f"The metric {name} takes no options, and is written as {written!r}. Leave them out.")
    return build(name, paths)


def fitted_metric(
    written: str,
    references: Sequence[str],
    *,
    languages: Sequence[str | None] | None = None,
    paths: Mapping[str, str] | None = None,
) -> Metric:
    """Find a metric, as it is computed for references of this length and these languages (`Metric.fit`).

    Raises:
        ConfigError: as `metric`; or the references are in languages that it cannot score together.
    """
    found = metric(written, paths)
    return found if found.fit is None else found.fit(references, languages or [None] * len(references))


def is_reward(name: str) -> bool:
    """Tell whether a result is that of a reward, in its own units, and not of a metric from 0 to 100."""
    return name == REWARD or (name.startswith("rewards/") and name.endswith("/mean"))


def is_share(name: str) -> bool:
    """Tell whether a result is a small number, of which tables show four decimals: a reward, or the share cut."""
    return is_reward(name) or name == "truncated"


def validation_metrics(best: str | None) -> tuple[str, ...]:
    """List the metrics of validation in training: the one that chooses the best adapter, and those always shown.

    Where the first is one of these with options, its plain form is left out: a page has one BLEU. None stands for a
    reward, which is no metric of texts.
    """
    if best is None:
        return DEFAULT_METRICS
    chosen = name_and_options(best)[0]
    return (best, *(name for name in DEFAULT_METRICS if name != chosen))


def less_is_better(written: str) -> bool:
    """Tell whether a metric counts errors; token_error_rate is the validation of stage align."""
    name = name_and_options(written)[0]
    return name == "token_error_rate" or (name in METRICS and METRICS[name].less_is_better)


def score(
    predictions: Sequence[str],
    references: References,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    lowercase: bool = False,
    sources: Sequence[str] | None = None,
    languages: Sequence[str | None] | None = None,
    paths: Mapping[str, str] | None = None,
) -> dict[str, Score]:
    """Compute each metric over the corpus, from 0 to 100. Error rates may exceed 100, and less is better there.

    White space is folded first on both sides, and case too with `lowercase`.

    Args:
        predictions: one text per item.
        references: one text per item, not empty, or a list of all that are right.
        metrics: names.
        lowercase: compare without case.
        sources: what was said, one text per item, where a metric reads it (comet).
        languages: of the references, such as zh-CN, one per item; None where it is not known.
        paths: metric → where its data or model is (meteor, bertscore, comet).

    Raises:
        ConfigError: an unknown metric, or one that cannot run here.
        DataError: a different number of predictions and references, none, a value that is not text, an empty reference.
    """
    scores = {}
    for name in metrics:
        found = _fitted(name, references, languages, paths)
        value = found.total(statistics(found, predictions, references, lowercase=lowercase, sources=sources).sum(0))
        scores[name] = Score(value, signature_of(found, lowercase, references))
    return scores


def bootstrap(
    predictions: Sequence[str],
    references: References,
    name: str,
    *,
    lowercase: bool = False,
    groups: Sequence[Hashable] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float | None, float | None]:
    """Compute value, low and high of a percentile bootstrap over items, or over `groups` (one key per item) as wholes.

    Where several rows come from one recording, give its name as the group: such rows are not independent. Of a single
    item or group there is no interval: low and high are None.
    """
    found = _fitted(name, references)
    scored = Scored(found.total, [statistics(found, predictions, references, lowercase=lowercase)])
    low, high = scored.interval(groups=groups, samples=samples, seed=seed, level=level) or (None, None)
    return scored.value(), low, high


def paired_bootstrap(
    predictions_a: Sequence[str],
    predictions_b: Sequence[str],
    references: References,
    name: str,
    *,
    lowercase: bool = False,
    groups: Sequence[Hashable] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compute the difference B − A, its interval and two-sided p-value, both systems on the same resamples.

    p is twice the smaller share of resamples on one side of 0, at most 1. The corpus itself counts as one more
    resample, so p is at least 2/(samples + 1). Paired resampling is Koehn's (EMNLP 2004), who reports one side. Of a
    single item or group, interval and p are None.
    """
    found = _fitted(name, references)
    a, b = [
        Scored(found.total, [statistics(found, side, references, lowercase=lowercase)])
        for side in (predictions_a, predictions_b)
    ]
    difference = b.against(a, groups=groups, samples=samples, seed=seed, level=level)
    assert difference is not None  # every item has a score
    return difference


def _fitted(
    name: str,
    references: References,
    languages: Sequence[str | None] | None = None,
    paths: Mapping[str, str] | None = None,
) -> Metric:
    # Whatever is no text is refused where the statistics are computed.
    texts = [text if isinstance(text, str) else "" for text in map(_first, references)]
    return fitted_metric(name, texts, languages=languages, paths=paths)


def _first(references: Any) -> Any:
    return first_of(references) if isinstance(references, str | list | tuple) else references


def statistics(
    metric: Metric,
    predictions: Sequence[str],
    references: References,
    *,
    lowercase: bool = False,
    sources: Sequence[str] | None = None,
) -> np.ndarray:
    """Compute the (items, statistics) array of a metric, after checking the texts; raises as `score` does."""
    if len(predictions) != len(references) or not len(references):
        counts = f"{len(predictions)} predictions came for {len(references)} references"
        raise DataError(f"{counts}; give the same number of both, at least 1.")
    listed: list[Any] = [list(one) if isinstance(one, list | tuple) else [one] for one in references]
    for i, (prediction, some) in enumerate(zip(predictions, listed, strict=True)):
        if not isinstance(prediction, str) or not all(isinstance(one, str) for one in some):
            raise DataError(f"Item {i} has prediction {prediction!r} and reference {references[i]!r}; give two texts.")
        if not some or not all(one.strip() for one in some):
            raise DataError(f"Reference {i} is empty; every item needs a text to be compared with.")
    if metric.needs_source and (sources is None or len(sources) != len(references) or not all(sources)):
        raise DataError(
            f"The metric {metric.signature(lowercase).split('|')[0]} reads what was said, besides prediction and "
            "reference. Give every row a `text`, or leave the metric out."
        )
    fold = partial(fold_whitespace, lowercase=lowercase)
    ours, theirs = [*map(fold, predictions)], [[*map(fold, some)] for some in listed]
    said = [*map(fold, sources)] if metric.needs_source and sources is not None else None
    if has_several(theirs):
        return statistics_of_several(metric, ours, theirs, said)
    sides = [ours, [some[0] for some in theirs]]
    return metric.items(*sides, *([] if said is None else [said]))

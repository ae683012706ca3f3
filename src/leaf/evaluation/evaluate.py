"""Evaluate a policy on rows: decode passes, score them with corpus metrics, compute bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from leaf.data.given import rows_from
from leaf.errors import DataError
from leaf.evaluation.fitting import texts_and_languages
from leaf.evaluation.lengths import LENGTHS
from leaf.evaluation.predict import Decoding, predict
from leaf.evaluation.predictions import Predictions, kept_items
from leaf.evaluation.registry import Scoring, is_reward, metric
from leaf.evaluation.reward_metrics import Arguments, reward_metrics, reward_statistics
from leaf.model.policy import Policy
from leaf.model.sampler import Sampler
from leaf.runs.processes import Processes

_PACKAGES = ("leaf-speech", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one evaluation.

    Attributes:
        rows: the evaluated rows.
        predictions: what was said, by pass, as it is written to a file.
        scores: metric name → mean over the passes.
        spreads: metric name → (lowest, highest) pass.
        signatures: metric name → what reproduces it, decoding included.
        truncated: share of the predictions that the length limit cut.
        length_mean: tokens of a prediction, the mean; None where a file does not say it.
        intervals: metric name → bootstrap interval of the mean over the passes, resampled by utterance; of a single
            recording there is none, and nothing where they are not asked for.
        notes: a sentence for each failure of a reward function, and each reward that scored nothing.
    """

    rows: list[dict[str, Any]]
    predictions: Predictions
    scores: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    signatures: dict[str, str]
    truncated: float
    length_mean: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passes(self) -> list[list[str]]:
        """List the predictions of each pass."""
        return self.predictions.passes

    def values(self) -> dict[str, float]:
        """Put the scores, the truncation rate and the mean length into one flat dictionary."""
        length = {} if self.length_mean is None else {"length_mean": self.length_mean}
        return {**self.scores, "truncated": self.truncated, **length}

    def write(self, path: str | Path) -> None:
        """Write predictions beside references as JSON lines, one per item and pass, and what they were made with.

        A system without a name is named after the file.
        """
        self.predictions.system = self.predictions.system or Path(path).stem
        self.predictions.write(Path(path))


def evaluate(
    policy: Policy,
    rows: Any,
    decoding: Decoding | None = None,
    scoring: Scoring | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
    trainer_state: TrainerState | None = None,
    sampler: Sampler | None = None,
) -> Evaluation:
    """Decode predictions and score them.

    Args:
        policy: decodes.
        rows: with `prompt`, `audio` and `reference`; a list of dicts, a `datasets.Dataset` or a DataFrame of pandas.
        decoding: how to decode; default one sampled pass.
        scoring: how to score; default `DEFAULT_METRICS`, without intervals.
        progress: called with the number of rows after each batch.
        processes: share the rows; all of them have to call, and all get the scores.
        trainer_state: reaches reward functions under this name.
        sampler: decodes in the policy's place, and has its weights; default the policy itself.

    Raises:
        ConfigError, DataError: no rows, an unknown metric, or rows that a metric cannot score; before any decoding.
    """
    decoding, scoring = decoding or Decoding(), scoring or Scoring()
    rows = checked_rows(rows, scoring)
    predictions = Predictions("", kept_items(rows), meta={"made_with": {"decoding": decoding.as_meta()}})
    passes = predict(policy, rows, decoding, progress=progress, processes=processes, sampler=sampler)
    predictions.add(decoding.passes, passes)

    def arguments(texts: Sequence[str]) -> dict[str, Any]:
        """Give reward functions what TRL gives them; the token ids are those of the text."""
        return {
            "completion_ids": [policy.token_ids(text) for text in texts],
            "trainer_state": trainer_state or TrainerState(),
        }

    return score_predictions(predictions, rows, scoring, arguments=arguments, processes=processes)


def score_predictions(
    predictions: Predictions,
    rows: Sequence[dict[str, Any]],
    scoring: Scoring,
    *,
    arguments: Arguments | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Score predictions and write the scores, with their signatures, into their meta data.

    Args:
        predictions: changed in place.
        rows: the rows of its items, in their order.
        scoring: how to score.
        arguments, processes: of `reward_statistics`.
    """
    names, notes = _score_rewards(predictions, rows, scoring, arguments, processes)
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        scored, signature = predictions.scored(name, lowercase=scoring.lowercase, paths=scoring.paths)
        results[name] = {"value": scored.value(), "passes": scored.values(), "signature": signature}
        if scoring.intervals and (interval := scored.interval(groups=predictions.groups)) is not None:
            results[name]["interval"] = list(interval)
    cut = [flag for one in predictions.truncated for flag in one]
    truncated = sum(map(bool, cut)) / len(cut)
    tokens = [count for one in predictions.tokens for count in one if count is not None]
    # Statistics that took data or a model to make are kept, even where their metric was not asked for this time.
    same_case = predictions.meta.get("lowercase") == scoring.lowercase
    recorded = predictions.meta.get("metrics", {})
    before = {name: one for name, one in recorded.items() if same_case or is_reward(name)}  # which see the case anyway
    predictions.kept = {name: arrays for name, arrays in predictions.kept.items() if name in before or name in results}
    predictions.meta |= {
        "predictions": 1,
        "seeds": predictions.seeds,
        "lowercase": scoring.lowercase,
        "metrics": {name: one for name, one in before.items() if name in predictions.kept} | results,
        "truncated": truncated,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    decoding = Decoding.of_meta(predictions.meta["made_with"]["decoding"], predictions.seeds)
    return Evaluation(
        rows=list(rows),
        predictions=predictions,
        scores={name: one["value"] for name, one in results.items()},
        spreads={name: (min(one["passes"]), max(one["passes"])) for name, one in results.items()},
        signatures={name: f"{one['signature']}|{decoding.signature()}" for name, one in results.items()},
        truncated=truncated,
        length_mean=sum(tokens) / len(tokens) if len(tokens) == len(cut) else None,
        intervals={name: tuple(one["interval"]) for name, one in results.items() if "interval" in one},
        notes=notes,
    )


def _score_rewards(
    predictions: Predictions,
    rows: Sequence[dict[str, Any]],
    scoring: Scoring,
    arguments: Arguments | None,
    processes: Processes | None,
) -> tuple[list[str], list[str]]:
    """Put the values of the rewards that are asked for into the predictions.

    Returns:
        What can be scored of `scoring.metrics`, rewards by the name of their values, and sentences on what failed.
    """
    asked = reward_metrics(scoring.metrics, scoring.rewards)
    wanted = {one.label: one for one in asked.values() if one is not None}
    how = {"arguments": arguments, "processes": processes}
    arrays, notes = reward_statistics(list(wanted.values()), rows, predictions.said, **how)
    for label in list(arrays):
        if not any(items[:, 1].any() for items in arrays[label]):
            notes.append(f"{label} is left out: it scored none of {len(rows)} predictions")
            del arrays[label]
    predictions.kept |= arrays
    recorded = predictions.meta.setdefault("metrics", {})
    recorded |= {label: {"signature": wanted[label].signature} for label in arrays}
    names = [name if one is None else one.label for name, one in asked.items()]
    return [name for name in dict.fromkeys(names) if name in arrays or name not in wanted], notes


def checked_rows(rows: Any, scoring: Scoring) -> list[dict[str, Any]]:
    """Refuse what would fail only after hours of decoding, and return the rows as dictionaries.

    Raises:
        ConfigError: an unknown metric, or one that cannot run here.
        DataError: no rows, or rows without a text that a metric reads.
    """
    rows = [dict(row) for row in rows_from(rows, "Row") or ()]
    if not rows:
        raise DataError("There are no rows to evaluate; give at least one.")
    compared = []
    for name, reward in reward_metrics(scoring.metrics, scoring.rewards).items():
        if reward is not None:
            reward.rewards.check_rows(rows, "evaluated")
            continue
        if name in LENGTHS:
            continue
        found = metric(name, scoring.paths)
        compared.append(name)
        texts, languages = texts_and_languages(rows)
        if found.fit is not None and texts:
            found.fit(texts, languages)
        if found.needs_source and not all(row.get("text") for row in rows):
            raise DataError(f"The metric {name} reads what was said. Give every row a `text`, or leave the metric out.")
    empty = sum(not str(row.get("reference") or "").strip() for row in rows)
    if empty and compared:
        raise DataError(
            f"{empty} of {len(rows)} rows have no reference, so {', '.join(compared)} cannot be computed. Ask for "
            "predictions alone (`--metrics none`) and have them judged with `leaf judge`, or for a reward that needs "
            "no reference."
        )
    return rows

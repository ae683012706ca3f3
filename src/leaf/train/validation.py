"""What a validation measures: what chooses the best adapter, the metrics always shown, and the recipe's rewards."""

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

from leaf.config import LeafConfig
from leaf.errors import ConfigError, DataError
from leaf.evaluation.fitting import advice, fitting_metrics, texts_and_languages
from leaf.evaluation.registry import REWARD, Scoring, is_reward, less_is_better
from leaf.evaluation.reward_metrics import best_reward, label_of
from leaf.files import read_json, write_json
from leaf.rewards.total import Rewards
from leaf.runs.directory import RunDirectory


class Validation(NamedTuple):
    """How a run validates.

    Attributes:
        scoring: metrics and rewards.
        best: which of the scores chooses the best adapter.
        notes: lines about what is not measured, or says little.
        blank: columns that only the training rows have → None, as reward functions get what a row lacks.
    """

    scoring: Scoring
    best: str
    notes: list[str]
    blank: Mapping[str, None]

    def beats(self, score: float, best: float) -> bool:
        """Tell whether a score is better than the best so far."""
        return score < best if less_is_better(self.best) else score > best


def plan_validation(config: LeafConfig, rewards: Rewards, rows: Any, train_rows: Any) -> Validation:
    """Decide what is measured on the validation rows.

    Where no reward chooses the best adapter, one that fails in validation is left out of it, and does not end a run.

    Raises:
        ConfigError: `best_metric` names nothing that can be measured on these rows.
        DataError: it is a reward, and the rows lack a column of it.
    """
    chosen = best_reward(config.best_metric, rewards)
    best = config.best_metric if chosen is None else chosen.label
    notes: list[str] = []
    # References are looked for where no row has to be read for it; other rows are taken to have some.
    looked_at = isinstance(rows, list | tuple) or getattr(rows, "column_names", None) is not None
    texts, languages = texts_and_languages(rows)
    lacking = len(rows) - len(texts) if looked_at else 0
    asked = None if chosen else config.best_metric
    compared, left_out = ((), []) if lacking else fitting_metrics(asked, texts, languages)
    notes += left_out
    if not compared and chosen is None:
        which = f"{lacking} of {len(rows)} validation rows lack" if texts else "no validation row has"
        raise ConfigError(
            f"best_metric is {config.best_metric!r}, and {which} a reference to compare with. Set "
            "best_metric=reward, or one of the reward functions."
        )
    if lacking and texts:
        notes.append(f"{lacking} of {len(rows)} validation rows lack a reference, so no metric of texts is computed")
    names = list(compared)
    notes += advice(names, texts, languages)
    try:
        rewards.check_rows(rows, "validation")
        names += [REWARD, *(label_of(function) for function in rewards.functions)]
    except (ConfigError, DataError) as error:
        if chosen is not None:
            raise
        notes.append(f"rewards are not measured in validation. {error}")
    names += [config.best_metric] if chosen is not None and best not in names else []
    if chosen is None:
        rewards = copy(rewards)
        rewards.on_error = "skip"
    blank = dict.fromkeys(_columns(train_rows) - _columns(rows))
    return Validation(Scoring(tuple(names), intervals=True, rewards=rewards), best, notes, blank)


def _columns(rows: Any) -> set[str]:
    """List the columns of rows, where no row has to be read for it."""
    if isinstance(rows, list | tuple):
        return {name for row in rows for name in row}
    return set(getattr(rows, "column_names", None) or ())


def write_signatures(run: RunDirectory, signatures: Mapping[str, str]) -> None:
    """Write what reproduces the scores in validation.jsonl, beside it; the same at every validation of a run."""
    file = run.path / "signatures.json"
    text = {"signatures": dict(signatures)}
    if read_json(file) != text:
        write_json(file, text)


def scores_line(values: dict[str, float]) -> str:
    """Write scores in a line; rewards have units of their own and need more decimals."""
    return "  ".join(f"{name} {value:.{4 if is_reward(name) else 2}f}" for name, value in values.items())

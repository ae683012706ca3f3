"""Evaluate a policy: greedy or sampled passes over a split, corpus metrics, bootstrap intervals."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from leaf.errors import DataError
from leaf.memory import within_memory
from leaf.metrics import bootstrap, score
from leaf.speech.policy import Policy
from leaf.speech.sampling import sample
from leaf.training import step_generator

METRICS = ("bleu", "exact_match", "chrf")


@dataclass(frozen=True)
class Evaluation:
    """Hold the outcome of one evaluation.

    Attributes:
        rows: the evaluated rows.
        passes: predictions, one list per pass.
        scores: metric name → mean over the passes.
        spreads: metric name → (lowest, highest) pass.
        intervals: metric name → bootstrap interval of the first pass, resampled by utterance; empty if not asked for.
        signatures: metric name → what reproduces it, decoding included.
        truncated: share of completions cut by the length limit.
    """

    rows: list[dict[str, Any]]
    passes: list[list[str]]
    scores: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    signatures: dict[str, str]
    truncated: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Return the scores and the truncation rate as one flat dictionary."""
        return {**self.scores, "truncated": self.truncated}

    def write(self, path: str | Path) -> None:
        """Write predictions beside references as JSON lines."""
        with Path(path).open("w", encoding="utf-8") as file:
            for i, row in enumerate(self.rows):
                record = {key: row[key] for key in ("id", "kind", "utterance", "prompt", "reference") if key in row}
                record["predictions"] = [texts[i] for texts in self.passes]
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def predict(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    greedy: bool,
    max_new_tokens: int,
    temperature: float = 0.9,
    top_p: float = 0.9,
    seed: int = 42,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], float]:
    """Return one completion per row, in order, and the share that was truncated.

    Rows of like length share a batch; the sampling seed counts per batch, so a prediction depends on `seed`, the rows
    and `batch_size` only.
    """
    order = sorted(range(len(rows)), key=lambda i: (float(rows[i].get("seconds", 0.0)), i))
    texts = [""] * len(rows)
    truncated = 0
    for at in range(0, len(order), batch_size):
        indices = order[at : at + batch_size]
        draw = partial(
            sample,
            policy,
            policy.embed([rows[i] for i in indices]),
            num_completions=1,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            greedy=greedy,
        )
        groups = within_memory(policy, lambda draw=draw, at=at: draw(generator=step_generator(seed, at)))
        for i, group in zip(indices, groups, strict=True):
            texts[i] = group.texts(policy.tokenizer)[0]
            truncated += int(group.truncated[0])
        if progress is not None:
            progress(len(indices))
    return texts, truncated / len(rows)


def evaluate(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    greedy: bool = False,
    max_new_tokens: int = 200,
    temperature: float = 0.9,
    top_p: float = 0.9,
    seeds: Sequence[int] = (42,),
    metrics: Sequence[str] = METRICS,
    lowercase: bool = False,
    intervals: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a policy on rows with `prompt`, `audio` and `reference`: one greedy pass, or one sampled pass per seed."""
    rows = [dict(row) for row in rows]
    if not rows:
        raise DataError("There are no rows to evaluate; give at least one.")
    references = [row["reference"] for row in rows]
    options = {"temperature": temperature, "top_p": top_p, "progress": progress, "max_new_tokens": max_new_tokens}
    outcomes = [predict(policy, rows, greedy=greedy, seed=seed, **options) for seed in (seeds[:1] if greedy else seeds)]
    passes = [texts for texts, _ in outcomes]
    per_pass = [score(texts, references, metrics, lowercase=lowercase) for texts in passes]
    decoding = "greedy" if greedy else f"sampled:T{temperature:g}:p{top_p:g}:seeds{','.join(map(str, seeds))}"
    bounds = {}
    if intervals:
        groups = [row.get("utterance", str(i)) for i, row in enumerate(rows)]
        for name in metrics:
            _, low, high = bootstrap(passes[0], references, name, lowercase=lowercase, groups=groups)
            bounds[name] = (low, high)
    return Evaluation(
        rows=rows,
        passes=passes,
        scores={name: sum(one[name].value for one in per_pass) / len(per_pass) for name in metrics},
        spreads={
            name: (min(o[name].value for o in per_pass), max(o[name].value for o in per_pass)) for name in metrics
        },
        signatures={name: f"{per_pass[0][name].signature}|decoding:{decoding}" for name in metrics},
        truncated=sum(share for _, share in outcomes) / len(outcomes),
        intervals=bounds,
    )

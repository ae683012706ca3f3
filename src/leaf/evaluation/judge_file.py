"""Have a prediction file judged by a language model, and write the verdicts."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leaf.errors import ConfigError
from leaf.evaluation.compare import load_systems
from leaf.evaluation.predictions import Predictions, meta_path, read_predictions
from leaf.files import write_json, write_rows
from leaf.http import Endpoint
from leaf.rewards.endpoint import Client
from leaf.rewards.judge import Tally, compare_items, score_items, what_items_have
from leaf.rewards.judge_prompts import JudgeSettings


def judge_file(
    predictions: str | Path,
    endpoint: Endpoint,
    settings: JudgeSettings,
    *,
    against: str | Path | None = None,
    out: str | Path | None = None,
    passes: int = 1,
    cache: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Judge a prediction file, write one row per item and pass, and return a summary in a few lines.

    Every reply is cached as soon as it comes. So a call that was interrupted and is repeated asks only for the rest.

    Args:
        predictions: file of `leaf evaluate`, or any that leaf.evaluation.predictions reads.
        endpoint: where the judge answers.
        settings: how the judge is asked.
        against: the other prediction file, for pairwise; its items must be the same.
        out: file to write; default beside `predictions`, where `leaf compare` finds it.
        passes: how many of the file's passes are judged, from the first on.
        cache: file of replies; default beside `out`.
        say: takes lines about the progress.

    Raises:
        DataError, ConfigError: files or settings that do not fit.
        JudgeError: the endpoint refuses, or does not answer after all retries.
    """
    path = Path(predictions)
    if (settings.kind == "pairwise") != (against is not None):
        raise ConfigError("A pairwise judge needs two prediction files (--against OTHER), the other kinds need one.")
    systems = load_systems([path, against]) if against is not None else [read_predictions(path)]
    for one in systems:
        if not 1 <= passes <= len(one.passes):
            raise ConfigError(f"passes is {passes}; {one.system} has {len(one.passes)}.")
    out = Path(out or _file_name(path, endpoint.model, settings.kind, against))
    tally, rows = Tally(), []
    with Client(endpoint, cache or out.with_suffix(".cache.sqlite"), say=say) as client:
        for number in range(passes):
            results = _judge_pass(client, settings, systems, number, tally)
            for item, result in zip(systems[0].items, results, strict=True):
                rows.append({"id": item["id"], "pass": number, **result})
        tally.cached = client.cached
    has = what_items_have([_texts(item) for item in systems[0].items])
    line, summary = _summary(settings.kind, rows, tally)
    meta = {
        "judge": settings.describe(endpoint.model, **has),
        "judged": [{"system": one.system, "sha256": one.answers_digest(passes)} for one in systems],
        "passes": passes,
        "summary": summary,
        "line": line,
    }
    write_rows(out, rows)
    write_json(meta_path(out), meta)
    names = " against ".join(one.system for one in systems)
    return f"{names}: {line}\n{tally.cached} of {tally.replies} replies came from the cache; verdicts are in {out}"


def _file_name(path: Path, model: str, kind: str, against: str | Path | None) -> Path:
    """Name the file that is written where nothing is asked: beside the predictions, where `leaf compare` finds it."""
    other = "" if against is None else f"-{Path(against).stem}"
    plain = re.sub(r"[^\w.-]+", "-", Path(model).name)
    return path.with_name(f"{path.stem}.judge-{kind}-{plain}{other}.jsonl")


def _judge_pass(
    client: Client, settings: JudgeSettings, systems: Sequence[Predictions], number: int, tally: Tally
) -> list[dict[str, Any]]:
    """Have one pass of one system judged, or of two against each other."""
    names = ("answer",) if len(systems) == 1 else ("answer_a", "answer_b")
    items = [
        _texts(item) | {name: one.passes[number][i] for name, one in zip(names, systems, strict=True)}
        for i, item in enumerate(systems[0].items)
    ]
    work = compare_items if settings.kind == "pairwise" else score_items
    return work(client, settings, items, tally)


def _texts(item: Mapping[str, Any]) -> dict[str, str]:
    return {
        "passage": str(item.get("text") or ""),
        "question": str(item.get("prompt") or ""),
        "reference": str(item.get("reference") or ""),
    }


def _summary(kind: str, rows: Sequence[Mapping[str, Any]], tally: Tally) -> tuple[str, dict[str, Any]]:
    """Summarise what a judge found, as a line and as numbers."""
    numbers: dict[str, Any] = {"replies": tally.replies, "unreadable": tally.unreadable}
    if kind == "pairwise":
        counts = Counter(row["verdict"] for row in rows)
        names = ("win", "loss", "tie", "inconsistent", "failed")
        numbers |= {name: counts[name] for name in names}
        line = (
            f"{counts['win']} wins, {counts['loss']} losses, {counts['tie']} ties where both orders agree; "
            f"{counts['inconsistent']} disagree with themselves; {tally.line()}"
        )
        return line, numbers
    scores = [row["score"] for row in rows if row["score"] is not None]
    numbers |= {"scored": len(scores), "mean": statistics.fmean(scores) if scores else None}
    numbers["from_logprobs"] = tally.from_logprobs
    mean = f"mean {numbers['mean']:.2f}" if scores else "no mean"
    if kind == "direct" and len(scores) > 1:
        numbers["quartiles"] = statistics.quantiles(scores, n=4, method="inclusive")
    expected = f", {tally.from_logprobs} scores are expectations over log-probabilities" if kind == "rubric" else ""
    if "quartiles" in numbers:
        expected = f"; quartiles {', '.join(f'{one:g}' for one in numbers['quartiles'])}"
    return f"{mean} over {len(scores)} of {len(rows)} answers; {tally.line()}{expected}", numbers

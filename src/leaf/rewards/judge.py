"""LLM judges: 0-100 direct assessment, 1-5 rubric, pairwise comparison; on prediction files or as a reward function.

`leaf.rewards.judge_prompts` has what a judge is asked and how its reply is read; replies that cannot be read are
counted. `leaf.rewards.endpoint` sends the requests, retries them and caches the replies.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaf.data.rows import prompt_text
from leaf.errors import ConfigError, DataError
from leaf.http import Endpoint
from leaf.rewards.endpoint import Client, Reply
from leaf.rewards.judge_prompts import FIELDS, KINDS, JudgeSettings, expected_score, parse

__all__ = [
    "FIELDS",
    "KINDS",
    "Endpoint",
    "JudgeSettings",
    "Tally",
    "compare_items",
    "expected_score",
    "judge_reward",
    "parse",
    "score_items",
]


@dataclass
class Tally:
    """Counts of a judge's replies: all, unreadable ones, scores from log-probabilities, and those from the cache."""

    replies: int = 0
    unreadable: int = 0
    from_logprobs: int = 0
    cached: int = 0

    def line(self) -> str:
        """Write the counts as a phrase."""
        share = 100 * self.unreadable / self.replies if self.replies else 0.0
        return f"{self.unreadable} of {self.replies} replies ({share:.1f} %) could not be read"


def score_items(
    client: Client, settings: JudgeSettings, items: Sequence[Mapping[str, str]], tally: Tally
) -> list[dict[str, Any]]:
    """Have items judged: per item its score (None if no reply could be read), each sample's score, and the replies.

    Args:
        client: an open client of the judge's endpoint.
        settings: of kind direct or rubric.
        items: texts by name, as in `FIELDS`.
        tally: counts are added to it.
    """
    has = _check_items(settings, items)
    requests = [settings.bodies(item, client.endpoint.model, **has) for item in items]
    # Samples differ in their seed. If the user has removed it they are equal, and only a number tells the cache that
    # each is to be asked for.
    numbers = [bodies[:i].count(body) for bodies in requests for i, body in enumerate(bodies)]
    replies = iter(client.complete([body for bodies in requests for body in bodies], numbers))
    results = []
    for bodies in requests:
        ours = [next(replies) for _ in bodies]
        values = [_read_score(settings.kind, reply, tally) for reply in ours]
        read = [value for value in values if value is not None]
        middle = statistics.median if settings.kind == "direct" else statistics.fmean
        score = float(middle(read)) if read else None
        results.append({"score": score, "samples": values, "replies": [reply.text for reply in ours]})
    return results


def compare_items(
    client: Client, settings: JudgeSettings, items: Sequence[Mapping[str, str]], tally: Tally
) -> list[dict[str, Any]]:
    """Have pairs compared: per item the verdict for `answer_a`, which is win, loss, tie, inconsistent or failed.

    Judges prefer the answer that they see first, so each pair is shown in both orders, and only verdicts that agree
    count. Arguments are those of `score_items`, for settings of kind pairwise.
    """
    has = _check_items(settings, items)
    swapped = [{**item, "answer_a": item["answer_b"], "answer_b": item["answer_a"]} for item in items]
    model = client.endpoint.model
    bodies = [settings.bodies(item, model, **has)[0] for item in [*items, *swapped]]
    replies = client.complete(bodies)
    results = []
    for first, second in zip(replies[: len(items)], replies[len(items) :], strict=True):
        read = [parse("pairwise", reply.text) for reply in (first, second)]
        tally.replies += 2
        tally.unreadable += read.count(None)
        outcomes = {("a", "b"): "win", ("b", "a"): "loss", ("tie", "tie"): "tie"}
        verdict = "failed" if None in read else outcomes.get((str(read[0]), str(read[1])), "inconsistent")
        results.append({"verdict": verdict, "orders": read, "replies": [first.text, second.text]})
    return results


def judge_reward(
    url: str,
    model: str,
    *,
    kind: str = "direct",
    cache: str | Path | None = None,
    key_env: str | None = None,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    retries: int = 6,
    **settings: Any,
) -> Callable[..., list[float | None]]:
    """Make a reward function of a judge: direct / 100 or (rubric − 1) / 4, in [0, 1]; None if no reply can be read.

    Args:
        url: of the endpoint, such as http://localhost:8000/v1.
        model: name of the judge there.
        kind: direct or rubric.
        cache: file of replies; without one, equal requests are sent again in every rollout.
        key_env: environment variable with the API key.
        concurrency: requests at a time.
        timeout_s: seconds a reply may take.
        retries: after the first try.
        settings: those of `JudgeSettings.of`.

    Raises:
        ConfigError: settings are out of range.
        TypeError: there is no such setting.
        JudgeError: when the function is called, and the endpoint fails.
    """
    if kind == "pairwise":
        raise ConfigError(
            "A pairwise judge compares two systems and cannot be a reward; allowed are direct and rubric."
        )
    how = JudgeSettings.of(kind, **settings)
    endpoint = Endpoint(url, model, key_env=key_env, concurrency=concurrency, timeout_s=timeout_s, retries=retries)
    endpoint.key()  # a missing key is an error now, not after the model is loaded and the first group is sampled

    def judge(completions: Sequence[str], prompts: Sequence[Any], **columns: Any) -> list[float | None]:
        names = {"text": "passage", "reference": "reference"}
        items = []
        for i, (answer, prompt) in enumerate(zip(completions, prompts, strict=True)):
            row = {ours: str(columns[name][i] or "") for name, ours in names.items() if name in columns}
            row |= {"question": prompt_text(prompt), "answer": prompt_text(answer)}
            items.append({"passage": "", "reference": "", **row})
        with Client(endpoint, cache) as client:
            scores = [result["score"] for result in score_items(client, how, items, Tally())]
        scaled = (lambda s: s / 100) if kind == "direct" else (lambda s: (s - 1) / 4)
        return [None if score is None else scaled(score) for score in scores]

    return judge


def _read_score(kind: str, reply: Reply, tally: Tally) -> float | None:
    """Read the score of one reply, None if it cannot be read; count it."""
    tally.replies += 1
    found = parse(kind, reply.text)
    if found is None:
        tally.unreadable += 1
        return None
    expected = expected_score(reply, found) if kind == "rubric" else None
    tally.from_logprobs += expected is not None
    return float(found) if expected is None else expected


def what_items_have(items: Sequence[Mapping[str, str]]) -> dict[str, bool]:
    """Tell whether all items have a reference, and whether any has a transcript, as `JudgeSettings.prompt` asks."""
    return {
        "has_reference": all(item["reference"].strip() for item in items),
        "has_passage": any(item["passage"].strip() for item in items),
    }


def _check_items(settings: JudgeSettings, items: Sequence[Mapping[str, str]]) -> dict[str, bool]:
    """Refuse items that lack what the template shows, and say what they have."""
    has = what_items_have(items)
    template = settings.prompt(**has)
    columns = {"passage": "text", "question": "prompt", "reference": "reference"}
    for name, column in columns.items():
        if f"{{{name}}}" in template:
            empty = sum(not item[name].strip() for item in items)
            if empty:
                raise DataError(
                    f"{empty} of {len(items)} rows have no `{column}`, which the judge's prompt shows as {{{name}}}. "
                    "Give them one, or a template without it."
                )
    return has

"""Decode predictions: what a policy says on rows, greedily or sampled, in one pass or several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from leaf.config import LeafConfig
from leaf.data.rows import stated_seconds
from leaf.evaluation.predictions import Said, Unfinished
from leaf.model.draws import step_generator
from leaf.model.policy import Policy
from leaf.model.sampler import Drawing, LocalSampler, Sampler
from leaf.runs.processes import Processes

SAMPLING = ("temperature", "top_p", "top_k")  # settings without use where decoding is greedy


@dataclass(frozen=True)
class Decoding:
    """Describe how predictions are decoded: one greedy pass, or one sampled pass per seed.

    Attributes:
        greedy: take the likeliest token each time, in a single pass; temperature, top_p and seeds are then without use.
        temperature, top_p, top_k: of sampled passes; a top_k of None keeps all tokens.
        max_new_tokens: length limit of a prediction.
        batch_size: how many rows are decoded at once.
        seeds: of the passes; a seed of None stands for a greedy pass beside sampled ones.
    """

    greedy: bool = False
    temperature: float = 0.9
    top_p: float = 0.9
    top_k: int | None = None
    max_new_tokens: int = 200
    batch_size: int = 16
    seeds: tuple[int | None, ...] = (42,)

    @classmethod
    def of_recipe(cls, config: LeafConfig, *, greedy: bool, seeds: Sequence[int] = (42,)) -> "Decoding":
        """Take the evaluation settings of a recipe."""
        return cls(
            greedy=greedy,
            temperature=config.eval_temperature,
            top_p=config.eval_top_p,
            top_k=config.eval_top_k,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.eval_batch_size,
            seeds=tuple(seeds),
        )

    @classmethod
    def of_meta(cls, meta: Mapping[str, Any], seeds: Sequence[int | None]) -> "Decoding":
        """Read what `as_meta` wrote; the seeds are those of the file's passes."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in meta.items() if key in known}, seeds=tuple(seeds))

    @property
    def passes(self) -> tuple[int | None, ...]:
        """List the seed of each pass, None for a greedy one."""
        return (None,) if self.greedy else self.seeds

    def as_meta(self) -> dict[str, Any]:
        """Describe the decoding as a prediction file does, where each row names the seed of its pass."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "seeds"}

    def signature(self) -> str:
        """Write the decoding as part of a score's signature."""
        if self.greedy:
            return "decoding:greedy"
        seeds = ",".join(map(str, self.seeds))
        kept = "" if self.top_k is None else f":k{self.top_k}"
        return f"decoding:sampled:T{self.temperature:g}:p{self.top_p:g}{kept}:seeds{seeds}"

    def in_words(self) -> str:
        """Describe the decoding for a person."""
        if self.greedy:
            return "greedy"
        seeds = ", ".join(map(str, self.seeds))
        kept = "" if self.top_k is None else f", top-k {self.top_k}"
        return f"sampled at T {self.temperature:g}, top-p {self.top_p:g}{kept}, seeds {seeds}"


def predict(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    decoding: Decoding,
    *,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
    unfinished: Unfinished | None = None,
    sampler: Sampler | None = None,
) -> list[list[Said]]:
    """Decode each row once per pass.

    Rows of similar length share a batch, and all passes share a row's audio and prompt, each embedded and prefilled
    once. A row has a random stream of its own in each pass. So a prediction depends only on the seed, the row and its
    place among the rows, and not on how many processes share the work.

    Args:
        policy: decodes.
        rows: with `prompt` and `audio`.
        decoding: how, and with which seeds.
        progress: called with the number of rows after each batch.
        processes: share the rows; all of them have to call, and all get all predictions.
        unfinished: keeps each batch as soon as it is decoded; what it has from an earlier call is not decoded again.
        sampler: decodes in the policy's place, and has its weights; default the policy itself.

    Returns:
        Per pass the predictions in the order of the rows.
    """
    order = sorted(range(len(rows)), key=lambda i: (stated_seconds(rows[i]), i))
    if processes is not None:
        order = [order[i] for i in processes.positions(len(order))]
    said: dict[int, list[Said]] = {} if unfinished is None else dict(unfinished.said)

    def decode_all() -> None:
        for at in range(0, len(order), decoding.batch_size):
            indices = order[at : at + decoding.batch_size]
            if said.keys() >= set(indices):
                continue
            batch = _decode(policy, rows, indices, decoding, sampler or LocalSampler())
            said.update(batch)
            if unfinished is not None:
                unfinished.add(batch)
            if progress is not None:
                progress(len(indices))

    if processes is None:
        decode_all()
    else:
        processes.together(decode_all)
        said = {i: texts for part in processes.gather(said) for i, texts in part.items()}
    return [[said[i][k] for i in range(len(rows))] for k in range(len(decoding.passes))]


def _decode(
    policy: Policy, rows: Sequence[dict[str, Any]], indices: Sequence[int], decoding: Decoding, sampler: Sampler
) -> dict[int, list[Said]]:
    """Decode a batch of rows: per row, by number, what was said in each pass."""
    seeds = decoding.passes
    drawing = Drawing(
        num_completions=len(seeds),  # a row's passes are sampled as one group: its prompt is prefilled once
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        greedy=[seed is None for seed in seeds],
    )
    draws = [[step_generator(seed or 0, i) for seed in seeds] for i in indices]
    groups = sampler.sample(policy, policy.embed([rows[i] for i in indices]), drawing, draws)
    return {
        i: list(map(Said, group.texts(policy.tokenizer), group.truncated.tolist(), group.lengths.tolist()))
        for i, group in zip(indices, groups, strict=True)
    }

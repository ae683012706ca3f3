"""The tree explorer: recorded groups as prefix trees, with LEAF's credit and other rules' on the same rollouts."""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from leaf.config import LeafConfig
from leaf.data.rows import prompt_text
from leaf.errors import AudioError, LeafError
from leaf.report.audio import SECTION_BYTES, ClipStore, Recordings
from leaf.report.drawn_group import GroupTree
from leaf.report.page import Section, asset
from leaf.report.terminal import visible
from leaf.runs.directory import RunDirectory

TEXT_BYTES = 1_300_000  # of the groups of all runs; the recordings have SECTION_BYTES of their own
RULES = {
    "leaf": "LEAF",
    "grpo": "GRPO",
    "tempo": "TEMPO",
    "treerl": "TreeRL",
    "spo": "SPO-tree",
    "treepo": "TreePO",
    "shrunken": "shrunken values",
}
_SAME = 1e-3  # recorded and computed advantages that are nearer than this differ by rounding


def explorer_section(
    runs: Sequence[RunDirectory],
    *,
    names: Sequence[str] = (),
    audio: bool = True,
    text_bytes: int = TEXT_BYTES,
    audio_bytes: int = SECTION_BYTES,
) -> Section | None:
    """Return the explorer of all groups that runs recorded, or None if there are none.

    Where they are too many for the page, every run shows an even sample of its recorded steps, the first and the last
    among them; the page says how many of how many.

    Args:
        runs: run directories; those of other stages than rl, and those without recorded groups, are left out.
        names: of the runs on the page; without them, the last parts of their paths.
        audio: bring the recordings, found again through the recipe's task; where one is not found the group says why.
        text_bytes: what the groups may take; a single step per run is shown whatever it takes.
        audio_bytes: what the recordings may take; groups beyond that say so.

    Raises:
        RunError, ConfigError: a recipe or groups.jsonl cannot be read.
    """
    named = zip(runs, names or [run.path.resolve().name for run in runs], strict=True)
    recorded = [found for run, name in named if (found := _Recorded(run, name)).steps]
    if not recorded:
        return None
    count = max(len(one.steps) for one in recorded)
    guess = sum(sum(one.steps.values()) for one in recorded)
    count = max(1, min(count, int(2 * count * text_bytes / guess)))  # no need to draw what will surely not fit
    while True:
        for one in recorded:
            one.choose(count)
        size = sum(len(json.dumps(one.groups, ensure_ascii=False, separators=(",", ":")).encode()) for one in recorded)
        if size <= text_bytes or count == 1:
            break
        count = max(1, min(count - 1, int(count * text_bytes / size)))
    store = ClipStore(max_bytes=audio_bytes)
    shared: dict[str, Recordings] = {}  # runs of one task read its rows once
    for one in recorded:
        recipe = one.recipe
        key = json.dumps([recipe.task, recipe.columns, recipe.plugins])
        rows = shared.setdefault(key, Recordings(recipe.task, recipe.columns, recipe.plugins))
        one.add_audio(store if audio else None, rows)
    data = {"rules": list(RULES.items()), "runs": [one.payload() for one in _named(recorded)], "clips": store.clips}
    return Section(
        "trees", "Tree explorer", data, asset("explorer.js"), asset("explorer.css"), libraries=(asset("audio.js"),)
    )


def group_data(record: dict[str, Any], recipe: LeafConfig) -> dict[str, Any]:
    """Return what the page needs to draw one record of groups.jsonl.

    Returns:
        The facts of the group; `stretches`, parents before children, each with the number of the one `above` (−1: the
        root), the position its first token has (`start`), `members`, `texts`, `nats` (mean over its members), n and
        V̂ of its last node, whether that is `retained`, and the completions that end there (`ends`); and `credit`: rule
        → per completion runs [number of tokens, advantage]. `recorded` is among the rules where the recorded advantages
        are not those of the recipe's rule as computed here.
    """
    tree = GroupTree(record, recipe)
    lengths = tree.prefixes.lengths.tolist()
    computed = {rule: tree.advantages(rule) for rule in RULES}
    own = tree.advantages()
    credit = {rule: _runs(advantages, lengths) for rule, advantages in computed.items()}
    known = computed.get(recipe.credit)
    if known is None or (own.numel() and float((own - known).abs().max()) > _SAME):
        credit["recorded"] = _runs(own, lengths)
    size, value = tree.root()
    return {
        "step": record["step"],
        "id": visible(str(record["id"])),
        "prompt": visible(prompt_text(record["prompt"]), keep="\n"),
        "files": [visible(name) for name in record["audio"]],
        "spoken": None if record["text"] is None else visible(str(record["text"]), keep="\n"),
        "reference": None if record["reference"] is None else visible(str(record["reference"]), keep="\n"),
        "boundaries": tree.boundaries,
        "n": size,
        "value": round(value, 4),
        "idle": tree.idle,
        "rewards": [None if reward is None else round(reward, 4) for reward in record["rewards"]],
        "truncated": record["truncated"],
        "empty": tree.ends.get(-1, []),
        "stretches": _stretches(tree),
        "credit": credit,
    }


def _stretches(tree: GroupTree) -> list[dict[str, Any]]:
    count, mean = tree.prefixes.node_count(tree.scored), tree.prefixes.node_mean(tree.rewards)
    found: list[dict[str, Any]] = []
    waiting = [(-1, node) for node in reversed(tree.below(-1))]
    while waiting:
        above, node = waiting.pop()
        nodes = tree.stretch(node)
        last, members = nodes[-1], tree.members[node]
        span = tree.retained.get(last)
        start = tree.position(node)
        nats = tree.surprisal[members, start : start + len(nodes)].mean(0)
        value = float(mean[last]) if span is None else span.value
        waiting += [(len(found), child) for child in reversed(tree.below(last))]
        found.append(
            {
                "above": above,
                "start": start,
                "members": members,
                "texts": [visible(tree.text(node)) for node in nodes],
                "nats": [round(nat, 3) for nat in nats.tolist()],
                "n": int(count[last]) if span is None else span.size,
                "value": None if value != value else round(value, 4),
                "retained": span is not None,
                "ends": tree.ends.get(last, []),
            }
        )
    return found


def _runs(advantages: Tensor, lengths: Sequence[int]) -> list[list[list[float]]]:
    """Return every completion's advantages as runs [number of tokens, advantage]."""
    rows = [[round(value, 4) + 0.0 for value in row[:n]] for row, n in zip(advantages.tolist(), lengths, strict=True)]
    return [[[len(list(same)), value] for value, same in groupby(row)] for row in rows]


def even(values: Sequence[int], count: int) -> list[int]:
    """Return `count` of the values evenly spread, the first and the last among them; of one, the last."""
    if count >= len(values):
        return list(values)
    if count == 1:
        return [values[-1]]
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


class _Recorded:
    """Hold the recorded groups of one run: which steps there are, and the data of those that are shown.

    Attributes:
        steps: recorded step → about how many bytes its groups will take.
        groups: the data of the shown groups.
    """

    def __init__(self, run: RunDirectory, name: str):
        self.run, self.name = run, name
        self.steps: dict[int, int] = {}
        self.total = 0
        self.groups: list[dict[str, Any]] = []
        self._drawn: dict[tuple[int, int], dict[str, Any]] = {}
        self._rows: dict[tuple[int, int], dict[str, Any]] = {}  # what is known of the task's row
        recipe = run.config()
        if not isinstance(recipe, LeafConfig):
            return
        self.recipe = recipe
        for record in run.lines("groups.jsonl"):
            self.total += 1
            size = 1500 + 20 * len(record["tree"]["parent"]) + 100 * len(record["token_ids"])
            self.steps[record["step"]] = self.steps.get(record["step"], 0) + size

    def choose(self, count: int) -> None:
        """Take `count` of the recorded steps and compute the data of their groups."""
        chosen = set(even(sorted(self.steps), count))
        self.groups = []
        numbers: dict[int, int] = {}
        for record in self.run.lines("groups.jsonl"):
            step = record["step"]
            number = numbers[step] = numbers.get(step, -1) + 1
            if step in chosen:
                if (step, number) not in self._drawn:
                    self._drawn[step, number] = {"number": number, **group_data(record, self.recipe)}
                    row = {"id": str(record["id"]), "prompt": record["prompt"], "reference": record["reference"]}
                    # Messages were recorded without their audio parts, so that they are not the row's own.
                    self._rows[step, number] = {k: v for k, v in row.items() if k != "prompt" or isinstance(v, str)}
                self.groups.append(self._drawn[step, number])
        self.groups.sort(key=lambda group: (group["step"], group["number"]))

    def add_audio(self, store: ClipStore | None, recordings: Recordings) -> None:
        """Give every group the number of its clip, or the reason why there is none."""
        task = visible(Path(self.recipe.task).name)
        # Evenly over the steps, however many fit: halves before quarters before eighths.
        width = len(self.groups).bit_length()
        order = sorted(range(len(self.groups)), key=lambda i: f"{i:0{width}b}"[::-1])
        missing: str | None = None
        for group in (self.groups[i] for i in order):
            group["clip"], group["silence"] = None, "This report was written without recordings."
            if store is None:
                continue
            group["silence"] = missing
            if missing is not None:
                continue
            try:
                source = recordings.find(self._rows[group["step"], group["number"]], self.recipe.train_split)
            except AudioError as error:  # this row's alone
                group["silence"] = f"The recording is not here. {_without_folders(error)}"
                continue
            except (LeafError, OSError) as error:
                missing = group["silence"] = (
                    f"The recordings are not here: the rows of {task} cannot be read. {_without_folders(error)}"
                )
                continue
            if source is None:
                group["silence"] = f"The recording is not here: {task} has no such row any more."
                continue
            try:
                group["clip"] = store.add(source)
            except (LeafError, OSError) as error:
                group["silence"] = f"The recording is not here. {_without_folders(error)}"
                continue
            if group["clip"] is None:
                group["silence"] = "The recording was left out to keep this page small."

    def payload(self) -> dict[str, Any]:
        """Return the run's part of the section's data."""
        return {
            "name": visible(self.name),
            "credit": visible(self.recipe.credit),
            "groups": self.groups,
            "total": self.total,
            "steps": len(self.steps),
        }


def _without_folders(error: Exception) -> str:
    """Return an error's words with the names of files alone: a report is passed on."""
    return re.sub(r"(?:\b[A-Za-z]:)?[\\/](?:[^\\/\s]+[\\/])+", "", visible(str(error)))


def _named(recorded: Sequence[_Recorded]) -> Sequence[_Recorded]:
    """Give runs of equal names numbers, so that each has an address of its own."""
    seen: dict[str, int] = {}
    for one in recorded:
        seen[one.name] = seen.get(one.name, 0) + 1
        if seen[one.name] > 1:
            one.name = f"{one.name} ({seen[one.name]})"
    return recorded

"""The tree explorer: recorded groups as prefix trees, with the credit of LEAF and other rules on the same rollouts."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from leaf.config import LeafConfig
from leaf.credit import SET_RULES, weighs_draws
from leaf.data.rows import prompt_text
from leaf.errors import AudioError, LeafError
from leaf.report.audio import SECTION_BYTES, ClipStore, Recordings
from leaf.report.drawn_group import DrawnGroup, Stretch, in_short
from leaf.report.page import Section, assets
from leaf.report.recorded import RecordedGroups, even
from leaf.runs.directory import RunDirectory
from leaf.text import unique_names
from leaf.visible import visible

TEXT_BYTES = 1_300_000  # of the groups of all runs; the recordings have SECTION_BYTES of their own
RULES = {
    "leaf": "LEAF",
    "grpo": "GRPO",
    "unordered_set": "unordered set",
    "tempo": "TEMPO",
    "treerl": "TreeRL",
    "spo": "SPO-tree",
    "treepo": "TreePO",
    "shrunken": "shrunken values",
}
_SAME = 1e-3  # recorded and computed advantages that are nearer than this differ by rounding
_SCRIPTS = ("audio.js", *(f"explorer/{name}.js" for name in ("credit", "tree", "layout", "note", "explorer")))


def explorer_section(
    runs: Sequence[RunDirectory],
    *,
    names: Sequence[str] = (),
    audio: bool = True,
    text_bytes: int = TEXT_BYTES,
    audio_bytes: int = SECTION_BYTES,
) -> Section | None:
    """Make the explorer of all groups that runs recorded; None if there are none.

    If they are too many for the page, each run shows an even sample of its recorded steps, with the first and the last
    one. The page then says how many of how many it shows.

    Args:
        runs: run directories. Those of other stages than rl, and those without recorded groups, are left out.
        names: of the runs on the page; without them, the last parts of their paths.
        audio: add the recordings, found again through the recipe's task. If one is not found, its group says why.
        text_bytes: what the groups may take; a single step of each run is shown whatever it takes.
        audio_bytes: what the recordings may take; groups beyond that say so.

    Raises:
        RunError, ConfigError: a recipe or groups.jsonl cannot be read.
    """
    names = unique_names(names or [run.path.resolve().name for run in runs])  # each run has an address of its own
    recorded = []
    for run, name in zip(runs, names, strict=True):
        recipe = run.what_ran()
        if isinstance(recipe, LeafConfig) and (found := _RecordedRun(run, recipe, name)).steps:
            recorded.append(found)
    if not recorded:
        return None
    _choose_steps(recorded, text_bytes)
    store = ClipStore(max_bytes=audio_bytes)
    shared: dict[str, Recordings] = {}  # runs of one task read its rows once
    for one in recorded:
        task = (one.recipe.task, one.recipe.columns, one.recipe.plugins)
        one.add_recordings(store if audio else None, shared.setdefault(json.dumps(task), Recordings(*task)))
    data = {"rules": list(RULES.items()), "runs": [one.as_json() for one in recorded], "clips": store.clips}
    return Section("trees", "Tree explorer", data, assets(*_SCRIPTS), assets("audio.css", "explorer/explorer.css"))


def group_data(record: dict[str, Any], recipe: LeafConfig) -> dict[str, Any]:
    """Compute what the page needs to draw one record of groups.jsonl.

    Returns:
        The facts of the group. `stretches`, depth first, each with the number of the one `above` (−1: the prompt), the
        position of its first token (`start`), `members`, `texts`, `nats` (mean over its members), n and V̂ of its last
        node, whether that is `retained`, and the completions that end there (`ends`). `draw`, of distinct completions:
        the mass of all, and by completion probability and weight; their stretches have a `mass`. `credit`: rule → per
        completion runs [number of tokens, advantage]; `recorded` is among the rules if the recorded advantages are not
        those that the recipe's rule gives here.
    """
    group = DrawnGroup(record, recipe)
    lengths = group.tree.lengths.tolist()
    rules = [rule for rule in RULES if (weighs_draws(rule) if group.draw is not None else rule not in SET_RULES)]
    computed = {rule: group.advantages(rule) for rule in rules}
    credit = {rule: _in_runs(advantages, lengths) for rule, advantages in computed.items()}
    trained_with, own = computed.get(recipe.credit), group.advantages()
    if trained_with is None or (own.numel() and float((own - trained_with).abs().max()) > _SAME):
        credit["recorded"] = _in_runs(own, lengths)
    return {
        "step": record["step"],
        "id": visible(str(record["id"])),
        "prompt": visible(prompt_text(record["prompt"]), keep="\n"),
        "files": [visible(name) for name in record["audio"]],
        "spoken": None if record["text"] is None else visible(str(record["text"]), keep="\n"),
        "reference": None if record["reference"] is None else visible(str(record["reference"]), keep="\n"),
        "boundaries": group.boundaries,
        "n": group.size,
        "value": round(group.value, 4),
        "idle": group.idle,
        "rewards": [None if reward is None else round(reward, 4) for reward in record["rewards"]],
        "parts": {
            visible(name): [None if value is None else round(value, 4) for value in values]
            for name, values in record.get("rewards_by_function", {}).items()
        },
        "truncated": record["truncated"],
        "empty": group.empty,
        "draw": _draw_data(group),
        "stretches": [_stretch_data(group, stretch) for stretch in group.stretches],
        "credit": credit,
    }


def _draw_data(group: DrawnGroup) -> dict[str, Any] | None:
    if group.draw is None:
        return None
    p = [in_short(value) for value in group.draw.log_prob.tolist()]
    weights = [f"{weight:.3f}" for weight in group.record["weight"]]
    return {"mass": group.mass, "p": p, "weights": weights}


def _stretch_data(group: DrawnGroup, stretch: Stretch) -> dict[str, Any]:
    nats = group.surprisal[stretch.members, stretch.start : stretch.start + len(stretch.texts)].mean(0)
    return {
        "above": stretch.above,
        "start": stretch.start,
        "members": stretch.members,
        "texts": [visible(text) for text in stretch.texts],
        "nats": [round(nat, 3) for nat in nats.tolist()],
        "n": stretch.size,
        "value": None if stretch.value != stretch.value else round(stretch.value, 4),
        "retained": stretch.retained,
        "ends": stretch.ends,
        "mass": stretch.mass,
    }


def _in_runs(advantages: Tensor, lengths: Sequence[int]) -> list[list[list[float]]]:
    """Shorten each completion's advantages to runs [number of tokens, advantage]."""
    # Adding 0.0 makes zero of minus zero.
    rows = [[round(value, 4) + 0.0 for value in row[:n]] for row, n in zip(advantages.tolist(), lengths, strict=True)]
    return [[[len(list(same)), value] for value, same in groupby(row)] for row in rows]


# -- which groups are shown --------------------------------------------------------------------------------------------
class _RecordedRun:
    """The recorded groups of one run: which steps there are, and the data of the groups that are shown.

    Attributes:
        name: of the run on the page.
        steps: recorded step → about how many bytes its groups will take.
        groups: the data of the shown groups.
    """

    def __init__(self, run: RunDirectory, recipe: LeafConfig, name: str):
        self.run, self.recipe, self.name = run, recipe, name
        self.groups: list[dict[str, Any]] = []
        self._recorded = RecordedGroups(run)
        self._drawn: dict[tuple[int, int], dict[str, Any]] = {}  # step and number → group, in the order of need
        self._rows: dict[tuple[int, int], dict[str, Any]] = {}  # the same → what is known of the task's row
        self.steps = self._recorded.sizes
        if self.steps:
            first = next(iter(self.steps))
            # A record has numbers that the page does without: by how much it is shorter shows in those of one step.
            drawn = sum(
                1500 + 20 * len(record["tree"]["parent"]) + 100 * len(record["token_ids"])
                for record in self._recorded.of([first])
            )
            self.steps = {step: size * drawn // self.steps[first] for step, size in self.steps.items()}

    def choose(self, count: int) -> None:
        """Choose `count` of the recorded steps, and compute the data of their groups."""
        chosen = set(even(sorted(self.steps), count))
        self.groups = []
        numbers: dict[int, int] = {}
        for record in self._recorded.of(chosen):
            step = record["step"]
            number = numbers[step] = numbers.get(step, -1) + 1
            if (step, number) not in self._drawn:
                self._drawn[step, number] = {"number": number, **group_data(record, self.recipe)}
                self._rows[step, number] = _row_of(record)
            self.groups.append(self._drawn[step, number])
        self.groups.sort(key=lambda group: (group["step"], group["number"]))

    def add_recordings(self, store: ClipStore | None, recordings: Recordings) -> None:
        """Give every group the number of its clip, or the reason why it has none."""
        for group in self.groups:
            group["clip"], group["silence"] = None, "This report was written without recordings."
        if store is None:
            return
        task = visible(Path(self.recipe.task).name)
        try:
            for group in _spread_out(self.groups):
                row = self._rows[group["step"], group["number"]]
                group["clip"], group["silence"] = _clip_of(row, recordings, self.recipe.train_split, task, store)
        except (LeafError, OSError) as error:  # of the rows, so that no group has a recording
            for group in self.groups:
                group["silence"] = f"There are no recordings: the rows of {task} cannot be read. {_told(error)}"

    def as_json(self) -> dict[str, Any]:
        """Collect the run's part of the section's data."""
        return {
            "name": visible(self.name),
            "credit": visible(self.recipe.credit),
            "groups": self.groups,
            "total": self._recorded.count,
            "steps": len(self.steps),
        }


def _choose_steps(recorded: Sequence[_RecordedRun], text_bytes: int) -> None:
    """Choose as many steps of each run as fit into a number of bytes together, and at least one."""
    guess = sum(sum(one.steps.values()) for one in recorded)
    count = max(len(one.steps) for one in recorded)
    count = max(1, min(count, int(2 * count * text_bytes / guess)))  # no need to draw what will surely not fit
    while True:
        for one in recorded:
            one.choose(count)
        size = sum(len(json.dumps(one.groups, ensure_ascii=False, separators=(",", ":")).encode()) for one in recorded)
        if size <= text_bytes or count == 1:
            return
        count = max(1, min(count - 1, int(count * text_bytes / size)))


# -- recordings --------------------------------------------------------------------------------------------------------
def _row_of(record: dict[str, Any]) -> dict[str, Any]:
    """Collect what a record says of the task's row: by this its recording is found."""
    row = {"id": str(record["id"]), "reference": record["reference"]}
    # Messages were recorded without their audio parts, so they are not the row's own.
    return row | ({"prompt": record["prompt"]} if isinstance(record["prompt"], str) else {})


def _spread_out(groups: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield groups in an order whose beginning is spread evenly, however long it is: halves, then quarters, eighths."""
    width = len(groups).bit_length()
    # Numbers whose binary digits are reversed: the last digit, whether a number is odd, counts most.
    yield from (groups[i] for i in sorted(range(len(groups)), key=lambda i: f"{i:0{width}b}"[::-1]))


def _clip_of(
    row: dict[str, Any], recordings: Recordings, split: str, task: str, store: ClipStore
) -> tuple[int | None, str | None]:
    """Find and store the recording of a row: the number of its clip, or the reason why it has none.

    Raises:
        LeafError, OSError: the rows of the task cannot be read.
    """
    try:
        source = recordings.find(row, split)
    except AudioError as error:  # of this row alone
        return None, f"The recording is missing. {_told(error)}"
    if source is None:
        return None, f"The recording is missing: {task} no longer has this row."
    try:
        number = store.add(source)
    except (LeafError, OSError) as error:
        return None, f"The recording is missing. {_told(error)}"
    return number, None if number is not None else "The recording was left out to keep this page small."


def _told(error: Exception) -> str:
    """Write an error's message without the folders of files, because reports are passed on to others."""
    return re.sub(r"(?:\b[A-Za-z]:)?[\\/](?:[^\\/\s]+[\\/])+", "", visible(str(error)))

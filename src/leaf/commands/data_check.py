"""The command `leaf data check`: what a data set holds, and what of it a run would refuse."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from leaf.commands.pairs import Columns, pairs
from leaf.commands.terminal import console, say, show
from leaf.config import LeafConfig, RunConfig, SftConfig
from leaf.errors import CodeRefused, ConfigError, DataError, LeafError, MissingFiles, did_you_mean

if TYPE_CHECKING:
    from leaf.data.check import Model, Survey

_VALUES = 6  # sampling rates, languages and the like that have a line of their own
_SHOWN = 20  # rows of a kind that are listed; the others are counted


@dataclass
class _Plan:
    """What is checked, and for what.

    Attributes:
        task: task, manifest or folder.
        columns: ours → theirs.
        config: the recipe; None where there is none.
        more: further tasks whose rows are trained on, too.
        training: the split that is trained on.
        model: what the model asks of rows.
        unknown: what could not be checked, and why.
    """

    task: str
    columns: dict[str, str]
    model: "Model"
    config: RunConfig | None = None
    more: Sequence[str] = ()
    training: str = "train"
    unknown: list[str] = field(default_factory=list)


def check(
    task: Annotated[str, typer.Argument(help="recipe, task, manifest, or folder of `leaf data prepare`")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, where a recipe is given")] = None,
    splits: Annotated[str | None, typer.Option(help="comma-separated; default all that there are")] = None,
    columns: Columns = None,
    decode: Annotated[bool, typer.Option("--decode", help="decode all audio instead of trusting headers")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="run the code that the recipe names: plugins")] = False,
) -> None:
    """Say what a data set holds, what it has twice and what cannot be used; exit code 1 if a row is unusable or leaks.

    With a recipe, rows are held against its model and its limits, too.
    """
    from leaf.plugins import code_refused

    with code_refused(not trust):
        plan = _plan(task, overrides, columns)
        try:
            loaded = _load(plan, splits)
        except MissingFiles as error:  # no run begins
            say(str(error))
            raise typer.Exit(1) from error
        missing = [] if splits else _missing(plan, loaded)
        if not _passes(plan, loaded, missing, decode=decode):
            raise typer.Exit(1)


def _passes(plan: _Plan, loaded: dict[str, list[dict[str, Any]]], missing: Sequence[str], *, decode: bool) -> bool:
    """Look at the rows and say what was found; tell whether all can be used, none leaks and the recipe's are there."""
    from leaf.data.check import survey
    from leaf.data.leaks import heard_in, leaks_among
    from leaf.progress import Busy

    with Busy(say, "comparing recordings", quiet=True):  # those of equal size are hashed
        heard = heard_in(loaded)
    total = sum(map(len, loaded.values()))
    with progress("decoding" if decode else "reading headers", total) as tick:
        found = {name: survey(rows, heard[name], plan.model, decode=decode, tick=tick) for name, rows in loaded.items()}
    show(_table(found))
    for line in _remarks(found, plan, decode=decode):
        say(line)
    for line in missing:
        say(line)
    unusable = [unusable_line(name, row.why, row.row) for name, one in found.items() for row in one.unusable]
    listed(f"{len(unusable)} of {total} rows cannot be used", unusable)
    for line in _consequences(found, plan) if unusable else ():
        say(line)
    leaks: list[str] = []
    if plan.training in loaded:
        leaks = leaks_among(loaded, heard, training=plan.training)
        listed(f"{len(leaks)} leak{'s' if len(leaks) != 1 else ''} of other splits into {plan.training}", leaks)
    elif len(loaded) > 1:
        say(f"no leaks were looked for: there is no split {plan.training}")
    return not unusable and not leaks and not (plan.config and missing)


def _missing(plan: _Plan, loaded: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Say which splits a run needs and the set has not; without a recipe, what a recipe would need by default."""
    config = plan.config or LeafConfig()
    needed = {plan.training: "trains on"} | ({config.eval_split: "validates on"} if config.eval_every else {})
    way_out = {"trains on": "set train_split", "validates on": "set eval_split, or eval_every=0 to validate nothing"}
    return [
        f"there is no row in the split {split}, which a run {use}: {way_out[use]}, or give the column split"
        for split, use in needed.items()
        if not loaded.get(split)
    ]


# -- what to check -----------------------------------------------------------------------------------------------------
def _plan(task: str, overrides: list[str] | None, columns: list[str] | None) -> _Plan:
    from leaf.data.check import Model

    mapped = pairs("--columns", columns, "ours=theirs, e.g. reference=answer")
    if Path(task).suffix.lower() in (".yaml", ".yml"):
        return _of_recipe(Path(task), overrides, mapped)
    if overrides:
        raise ConfigError(f"{overrides[0]} goes with a recipe, and {task} is none. Give a recipe that has it as task.")
    unknown = ["no recipe was given, so no model's longest audio and no max_prompt_tokens were checked"]
    return _Plan(task, mapped, Model(), unknown=unknown)


def _of_recipe(path: Path, overrides: list[str] | None, columns: dict[str, str]) -> _Plan:
    """Read a recipe, and what its model asks of rows; the model itself is not loaded."""
    from leaf.commands.running import read_recipe
    from leaf.data import TASKS
    from leaf.data.check import Model
    from leaf.plugins import load_plugins

    config = read_recipe(path, overrides, needed=("task",))
    more = config.extra_tasks if isinstance(config, SftConfig) else []
    plan = _Plan(config.task, {**config.columns, **columns}, Model(), config, more, config.train_split)
    try:
        load_plugins(config.plugins)
    except CodeRefused as error:
        if config.task not in TASKS and not Path(config.task).exists():
            raise  # the plugin may define it
        plan.unknown.append(str(error))
    try:
        from leaf.commands.doctor import look_up_model

        _, family, processor = look_up_model(config)
    except (LeafError, OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        plan.unknown.append(f"the longest audio and the prompts were not checked, for the model is unknown: {reason}")
        return plan
    plan.model = _of_model(config, family, processor)
    return plan


def _of_model(config: RunConfig, family: Any, processor: Any) -> "Model":
    from leaf.data.check import Model
    from leaf.model.prompt_lengths import PromptLengths
    from leaf.model.prompts import check_prompt_length

    lengths, allowed = PromptLengths(family, processor), config.max_prompt_tokens

    return Model(
        family.sampling_rate(processor),
        family.max_seconds(processor),
        lambda row, seconds: lengths.count(row, seconds, allowed),
        lambda row, tokens: check_prompt_length(row, tokens, allowed),
    )


def _load(plan: _Plan, splits: str | None) -> dict[str, list[dict[str, Any]]]:
    """Load the rows of every split, those of a recipe's further tasks with the training split."""
    from leaf.data import load, splits_of

    there = splits_of(plan.task, columns=plan.columns)
    names = [name.strip() for name in splits.split(",")] if splits else list(there)
    if missing := [name for name in names if name not in there]:
        hint = did_you_mean(missing[0], there)
        raise DataError(f"{plan.task} has no split {missing[0]!r}; it has {', '.join(there)}.{hint}")
    loaded = {name: load(plan.task, name, columns=plan.columns).to_list() for name in names}
    for task in plan.more if plan.training in loaded else ():
        loaded[plan.training] += load(task, plan.training, columns=plan.columns).to_list()
    return loaded


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; in a file or pipe say every half minute how far it is."""
    from leaf.progress import Busy

    if not console.is_terminal:
        with Busy(say, what, total, quiet=True) as busy:
            yield lambda: busy.add(1)
        return
    parts = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda: progress.advance(bar)


# -- what to say -------------------------------------------------------------------------------------------------------
def _table(found: "dict[str, Survey]") -> Table:
    """Lay out what splits hold, a column each."""
    table = Table("", *found)
    for title, cells in _cells(list(found.values())):
        table.add_row(title, *(cell or "-" for cell in cells))
    return table


def _cells(found: "Sequence[Survey]") -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of the table: a title, and a cell for each split."""
    yield "rows", [str(one.rows) for one in found]
    yield "recordings", [str(one.recordings) for one in found]
    yield "hours", [f"{one.hours:.2f}" for one in found]
    yield "seconds", [_spread(one.seconds, ".1f") for one in found]
    yield from _counts([one.rates for one in found], "{} Hz")
    yield from _counts([one.channels for one in found], "channels: {}")
    yield "reference tokens", [_spread(one.words, "g") for one in found]
    yield "references under 4", [str(one.short) for one in found]
    if any(one.prompts for one in found):
        yield "prompt tokens", [_spread(one.prompts, "g") for one in found]
    yield from _counts([one.languages for one in found], "language: {}")
    if any(one.clipped for one in found):
        yield "clipped", [str(one.clipped) for one in found]
    yield "unusable rows", [str(len(one.unusable)) for one in found]


def _spread(values: Sequence[float], form: str) -> str:
    from leaf.data.check import spread

    found = spread(values)
    return "" if found is None else " / ".join(format(value, form) for value in found)


def _counts(found: Sequence[Counter[Any]], title: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a line for each of the most frequent values, and one for all others."""
    both: Counter[Any] = sum(found, Counter())
    often = [value for value, _ in both.most_common(_VALUES)]
    for value in sorted(often):
        yield title.format(value), [str(one[value]) for one in found]
    if len(both) > len(often):
        rest = [sum(count for value, count in one.items() if value not in often) for one in found]
        yield f"{len(both) - len(often)} others", [str(count) for count in rest]


def _remarks(found: "dict[str, Survey]", plan: _Plan, *, decode: bool) -> Iterator[str]:
    """Yield a line for everything beside rows that cannot be used."""
    yield "three numbers are the least, the median and the greatest; tokens of references are counted as BLEU does"
    if not decode:
        yield "headers were read and nothing was decoded; --decode finds silent and damaged recordings, too"
    yield from plan.unknown
    if math.isfinite(plan.model.longest):
        yield f"the model takes at most {plan.model.longest:g} s of audio"
    if plan.model.prompt is not None and plan.config is not None and plan.config.max_prompt_tokens is None:
        yield "the recipe has no max_prompt_tokens, so no prompt is too long"
    for name, one in found.items():
        if one.words and 2 * one.short >= len(one.words):
            yield (
                f"{name}: {one.short} of {len(one.words)} references have fewer than 4 tokens, and so no four-gram for "
                "BLEU; exact_match and chrf say more"
            )
        for what, twice in (("recordings that are copies", one.copies), ("rows that repeat others", one.repeated)):
            if twice:
                yield f"{name}: {what}: {len(twice)} ({', '.join(twice[:3])}{', ...' if len(twice) > 3 else ''})"


def unusable_line(split: str, why: str, row: str) -> str:
    """Name split and row once: many reasons begin with the row."""
    return f"{split}, {why}" if re.match(rf"Row {re.escape(repr(row))}", why) else f"{split}, row {row!r}: {why}"


def _consequences(found: "dict[str, Survey]", plan: _Plan) -> Iterator[str]:
    """Yield what a run of the recipe would do at the rows that cannot be used."""
    config = plan.config
    if config is None:
        yield "a run stops at the first of them; with tolerate: skip, stage rl takes the next row for one without audio"
        return
    unusable = [row for one in found.values() for row in one.unusable]
    audio = sum(row.audio for row in unusable)
    if isinstance(config, LeafConfig) and config.tolerate == "skip":
        if audio:
            yield (
                f"tolerate: skip: the next row takes the place of one whose audio is unusable ({audio}); validation "
                "and `leaf evaluate` leave it out"
            )
        if audio < len(unusable):
            yield f"{len(unusable) - audio} of them have a prompt that cannot be used: the run stops there"
        return
    advice = "; tolerate: skip passes over unusable audio" if isinstance(config, LeafConfig) and audio else ""
    yield f"stage {config.stage} stops at the first of them that it reaches{advice}"


def listed(title: str, lines: list[str]) -> None:
    """Print a title and the first lines below it; the others are counted."""
    say(title + (":" if lines else ""))
    for line in lines[:_SHOWN]:
        say(f"  {line}")
    if len(lines) > _SHOWN:
        say(f"  and {len(lines) - _SHOWN} more")

"""Compare prediction files: scores with intervals, paired differences to the first, judges' verdicts, as a table.

Only systems that answered the same items are compared. Every difference is taken on the same resamples of recordings.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leaf.errors import ConfigError, DataError, did_you_mean
from leaf.evaluation.alike import difference_to_any, in_order_of, share_recordings
from leaf.evaluation.bootstrap import FEW_RECORDINGS
from leaf.evaluation.judgements import find_judgements, judge_lines
from leaf.evaluation.predict import SAMPLING, Decoding
from leaf.evaluation.predictions import Predictions, read_predictions
from leaf.evaluation.registry import DEFAULT_METRICS, is_reward, is_share
from leaf.evaluation.reward_metrics import kept_name
from leaf.evaluation.table import FORMATS, Line, render, score_lines, scored_notes
from leaf.text import unique_names


def chosen_metrics(
    names: Sequence[str] | None, paths: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, dict[str, str]]:
    """Read the options of a command: comma-separated lists of metrics (`none`: none) and METRIC=PATH each.

    Without a list, None stands for the default.
    """
    located = {}
    for given in paths or []:
        name, equals, path = given.partition("=")
        if not equals or not path:
            raise ConfigError(f"--metric-path is {given!r}; give METRIC=PATH, such as meteor=/usr/share/wordnet.")
        located[name] = path
    if not names:
        return None, located
    listed = [name.strip() for given in names for name in given.split(",")]
    return tuple(dict.fromkeys(name for name in listed if name not in ("", "none"))), located


def compare_files(
    files: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    paths: Mapping[str, str] | None = None,
    lowercase: bool | None = None,
    judged: Sequence[str | Path] = (),
    format: str = "text",
    samples: int = 1000,
    width: int | None = None,
) -> str:
    """Draw the table of several prediction files, and below it what reproduces it.

    A metric that nobody names is left out, with a note, where files lack it or were scored in different ways.

    Args:
        files: prediction files; differences are to the first.
        metrics: default those that the files were scored with, or else `DEFAULT_METRICS`.
        paths: metric → data or model, where its statistics were not kept.
        lowercase: compare without case; default as the files were scored.
        judged: further files of `leaf judge`; those beside the prediction files are found.
        format: text, markdown or latex.
        samples: bootstrap resamples.
        width: columns of the terminal that a text has to fit; None for a file or pipe.

    Raises:
        DataError: files whose items differ, or that cannot be read, or that lack a metric which is named.
        ConfigError: an unknown format or metric, a metric without its data, files scored in different ways by one that
            is named.
    """
    if format not in FORMATS:
        raise ConfigError(f"The format is {format!r}; allowed are {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}")
    systems = load_systems(files)
    lowercase = shared_case(systems, lowercase)
    asked = metrics is not None
    if metrics is None:
        scored_with = [name for one in systems for name in one.meta.get("metrics", {})]
        metrics = tuple(dict.fromkeys(scored_with)) or DEFAULT_METRICS
    lines: list[Line] = []
    notes = what_was_compared(systems, samples)
    kept = {name: one.kept_signature(name) for one in systems for name in one.kept}
    names = dict.fromkeys(kept_name(one, kept) for one in metrics)
    for name in names:
        try:
            more, about = _metric_lines(name, systems, samples, lowercase=lowercase, paths=paths)
        except (ConfigError, DataError) as error:
            if asked or len(names) == 1:
                raise
            more, about = [], [f"{name} is left out: {error}"]
        lines += more
        notes += about
    judgements, unused = find_judgements(systems, files, judged)
    notes += unused
    for results in judgements:
        more, about = judge_lines(results, systems, samples)
        lines += more
        notes += about
    return render(lines, notes, format, width)


def _metric_lines(name: str, systems: Sequence[Predictions], samples: int, **how: Any) -> tuple[list[Line], list[str]]:
    """Score systems by a metric: lines of the table, and what reproduces them.

    Raises:
        ConfigError, DataError: a system cannot be scored, or they were scored in different ways.
    """
    pairs = [one.scored(name, **how) for one in systems]
    signatures = {signature for _, signature in pairs}
    if len(signatures) > 1:
        raise ConfigError(f"{in_different_ways(name, signatures)} {_in_one_way(name)}")
    scored = [one for one, _ in pairs]
    worse = ", less is better" if scored[0].less_is_better else ""
    lines = score_lines(name, systems, scored, samples, digits=4 if is_share(name) else 2)
    return lines, [f"{name}: {signatures.pop()}{worse}", *scored_notes(name, systems, scored)]


def in_different_ways(name: str, signatures: Iterable[str]) -> str:
    """Say that systems were scored by a metric in different ways."""
    return f"{name} was computed in different ways: {' and '.join(sorted({*signatures}))}."


def _in_one_way(name: str) -> str:
    if is_reward(name):
        return "Repeat `leaf evaluate` for the older files; it scores them again, and decodes nothing."
    return f"Score all files again in one way, with `--metric-path {name}=...`."


def load_systems(files: Sequence[str | Path]) -> list[Predictions]:
    """Read prediction files of the same items, in the order of the first one's, each system under its own name.

    Raises:
        DataError: no files, or files whose items differ: which, and in what.
    """
    if not files:
        raise DataError("There is nothing to compare; give prediction files.")
    paths = [Path(file) for file in files]
    if twice := [str(path) for i, path in enumerate(paths) if path in paths[:i]]:
        raise DataError(f"{twice[0]} was given twice; give each file once.")
    systems = [read_predictions(path) for path in paths]
    names = unique_names([one.system for one in systems], [path.with_suffix("") for path in paths])
    for one, name in zip(systems, names, strict=True):
        one.system = name
    alike, wrong = systems[:1], []
    for one in systems[1:]:
        if difference := difference_to_any(alike, one):
            wrong.append(f"{one.system}: {difference}")
        else:
            alike.append(one)
    if wrong:
        raise DataError(
            f"Only systems that answered the same items can be compared; against {systems[0].system}, "
            f"{'; '.join(wrong)}. Evaluate them on the same split and rows."
        )
    systems = [systems[0], *(in_order_of(one, systems[0]) for one in systems[1:])]
    share_recordings(systems)
    return systems


def shared_case(systems: Sequence[Predictions], asked: bool | None) -> bool:
    """Decide whether to compare without case: as asked, or as the files were scored.

    Raises:
        ConfigError: nothing is asked, and some files were scored with case and some without.
    """
    if asked is not None:
        return asked
    ways = {one.meta["lowercase"] for one in systems if "lowercase" in one.meta}
    if len(ways) > 1:
        raise ConfigError("Some files were scored with case and some without; give --lowercase or --no-lowercase.")
    return ways.pop() if ways else False


def what_was_compared(systems: Sequence[Predictions], samples: int) -> list[str]:
    """Say what a comparison is made of: items, recordings, passes, decoding, intervals; and what few mean."""
    items, groups = len(systems[0].items), len(set(systems[0].groups))
    decodings = {}
    for one in systems:
        decoding = one.meta.get("made_with", {}).get("decoding")
        how = "decoding unknown" if decoding is None else Decoding.of_meta(decoding, one.seeds).in_words()
        decodings[one.system] = f"{len(one.passes)} {'pass' if len(one.passes) == 1 else 'passes'}, {how}"
    settings = _differing({one.system: _decoding(one) for one in systems})
    how = decodings[systems[0].system]
    if settings or len(set(decodings.values())) > 1:
        how = "DECODED DIFFERENTLY: " + "; ".join(f"{name}: {text}" for name, text in decodings.items())
        how += f"; they differ in {', '.join(settings)}" if settings else ""
    in_one_order = len({_items(one).get("sha256") for one in systems}) == 1
    rows = _differing({one.system: _rows(one, in_one_order) for one in systems})
    how += f"; FROM DIFFERENT ROWS: {', '.join(rows)}" if rows else ""
    left_out = systems[0].meta.get("left_out", [])
    without = f" ({len(left_out)} more left out for their audio)" if left_out else ""
    first = f"; differences are to {systems[0].system}, p two-sided, not corrected for several" if systems[1:] else ""
    made = (
        f"{items} items of {groups} {'recording' if groups == 1 else 'recordings'}{without}; {how}. Values are means "
        f"over passes; intervals: percentile bootstrap over recordings, {samples} resamples, paired{first}."
    )
    return [made, *_about_few(groups)]


def _decoding(one: Predictions) -> dict[str, Any]:
    """Give the settings that a system was decoded with, those of sampling only where it was sampled."""
    stated = one.meta.get("made_with", {}).get("decoding")
    if stated is None:
        return {}
    settings = {"sampler": "local", **stated}
    return {key: value for key, value in settings.items() if key not in SAMPLING or not settings.get("greedy")}


def _items(one: Predictions) -> dict[str, Any]:
    """Give the checksums that a file states of its items."""
    return one.meta.get("made_with", {}).get("items", {})


def _rows(one: Predictions, in_one_order: bool) -> dict[str, Any]:
    """Give what a file states of the rows that it was made from; the recordings' checksum is of their order, too."""
    made_with = one.meta.get("made_with", {})
    recordings = _items(one).get("recordings_sha256") if in_one_order else None
    return {key: made_with[key] for key in ("task", "split") if key in made_with} | (
        {} if recordings is None else {"recordings": recordings[:8]}
    )


def _differing(stated: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the settings that systems state differently, with each one's value."""
    found = []
    for key in dict.fromkeys(key for settings in stated.values() for key in settings):
        values = {system: settings[key] for system, settings in stated.items() if key in settings}
        if len(set(map(str, values.values()))) > 1:
            found.append(f"{key} ({', '.join(f'{system}: {value}' for system, value in values.items())})")
    return found


def _about_few(recordings: int) -> list[str]:
    """Say what intervals of so few recordings are worth; nothing of many."""
    if recordings >= FEW_RECORDINGS:
        return []
    if recordings == 1:
        return [
            "All items are of one recording, so there is no interval and no p: one recording does not say how much "
            "others would differ."
        ]
    return [
        f"The items are of {recordings} recordings. With fewer than {FEW_RECORDINGS}, intervals are too narrow and p "
        "is too small: a difference looks more certain than it is."
    ]

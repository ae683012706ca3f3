"""What a data set holds, before a night of training: how much, how long, which texts, what is there twice or unusable.

Rows are read as training reads them (leaf.data.recordings), so what is said here of a row is what training would say.
"""

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leaf.bleu import SHORT, bleu_scorer, is_unspaced
from leaf.data.audio import AudioWarning, headers, samples_and_rate
from leaf.data.leaks import Heard
from leaf.data.recordings import audio_of, hear, row_seconds, sources_of
from leaf.data.rows import Example, row_name
from leaf.errors import AudioError, LeafError

_LANGUAGES = ("reference_language", "language", "lang", "locale")  # columns that may state a language


@dataclass(frozen=True)
class Model:
    """What a model asks of rows.

    Attributes:
        rate: of its audio, in Hz.
        longest: seconds that it takes.
        prompt: counts the tokens of a row's prompt, audio of so many seconds included, or raises what is wrong with it;
            None where no model is known.
        check_prompt: raises where a row's prompt has too many tokens.
    """

    rate: int = 16000
    longest: float = math.inf
    prompt: Callable[[Example, float], int] | None = None
    check_prompt: Callable[[Example, int], None] = lambda row, tokens: None


@dataclass(frozen=True)
class Sound:
    """What is heard in a row: its seconds, and rates and channels of its recordings."""

    seconds: float
    rates: tuple[int, ...]
    channels: tuple[int, ...]
    clipped: bool = False


@dataclass(frozen=True)
class Unusable:
    """A row that training refuses: its name, why, and whether it is its audio, which `tolerate: skip` passes over."""

    row: str
    why: str
    audio: bool


@dataclass
class Survey:
    """What the rows of one split hold.

    Attributes:
        rows: how many there are.
        hours: of all recordings, each counted once.
        seconds: of every row that can be used.
        words: tokens of every reference, as BLEU counts them.
        prompts: tokens of every prompt, audio included, where a model is known.
        rates, channels, languages: value → recordings or rows that have it.
        recordings: how many there are.
        clipped: recordings with more than 1 % of their samples at full scale, found by decoding.
        unusable: rows that training would refuse.
        copies: recordings under two names that hold the same, as "b is a".
        repeated: rows with the prompt, reference and recording of an earlier one, as "2 is 1".
    """

    rows: int = 0
    hours: float = 0.0
    recordings: int = 0
    clipped: int = 0
    seconds: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    unusable: list[Unusable] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def short(self) -> int:
        """Count the references of fewer than four tokens, which have no four-gram for BLEU."""
        return sum(count < SHORT for count in self.words)


def survey(
    rows: Sequence[Mapping[str, Any]],
    heard: Sequence[Sequence[Heard]],
    model: Model,
    *,
    decode: bool,
    tick: Callable[[], None] = lambda: None,
) -> Survey:
    """Look at all rows of a split.

    Args:
        rows: of the split.
        heard: what each of them hears, see `leaf.data.leaks.heard_by_rows`.
        model: what the model asks of them.
        decode: decode every recording; otherwise headers alone are read.
        tick: is called after every row.
    """
    found = Survey(rows=len(rows))
    known: dict[Any, Sound | LeafError] = {}
    for row in rows:
        sound = _sound(row, known, model, decode=decode)
        try:
            if isinstance(sound, LeafError):
                raise sound
            found.seconds.append(sound.seconds)
            if model.prompt is not None:
                found.prompts.append(model.prompt(row, sound.seconds))
                model.check_prompt(row, found.prompts[-1])
        except LeafError as error:
            found.unusable.append(Unusable(row_name(row), str(error), isinstance(error, AudioError)))
        _note_texts(row, found)
        tick()
    for sound in known.values():
        if isinstance(sound, Sound):
            found.recordings += 1
            found.hours += sound.seconds / 3600
            found.rates.update(set(sound.rates))
            found.channels.update(set(sound.channels))
            found.clipped += sound.clipped
    _note_copies(rows, heard, found)
    return found


def spread(values: Iterable[float]) -> tuple[float, float, float] | None:
    """Compute the least, the median and the greatest value; None of none."""
    ordered = sorted(values)
    return (ordered[0], statistics.median(ordered), ordered[-1]) if ordered else None


def _sound(row: Mapping[str, Any], known: dict[Any, Sound | LeafError], model: Model, *, decode: bool) -> Any:
    """Read what is heard in a row, once for all rows that hear the same and state the same of it."""
    try:
        key = (*sources_of(row), str(row.get("seconds")))
    except LeafError as error:
        return error
    if key not in known:
        try:
            known[key] = _read(row, model, decode=decode)
        except LeafError as error:
            known[key] = error
    return known[key]


def _read(row: Mapping[str, Any], model: Model, *, decode: bool) -> Sound:
    clipped = False
    seconds = row_seconds(row, rate=model.rate, longest=model.longest)
    if decode:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", AudioWarning)
            seconds = len(hear(row, rate=model.rate, longest=model.longest)) / model.rate
        clipped = any(issubclass(one.category, AudioWarning) for one in said)
    audio = audio_of(row)
    stated = [(header.rate, header.channels) for _, header in headers(audio)]
    if not stated:
        array, rate = samples_and_rate(audio)
        stated = [(rate, array.shape[1] if array.ndim == 2 else 1)]
    return Sound(seconds, tuple(rate for rate, _ in stated), tuple(count for _, count in stated), clipped)


def _note_texts(row: Mapping[str, Any], found: Survey) -> None:
    references = row.get("references") or [row.get("reference")]
    found.words += [reference_tokens(text) for text in references if isinstance(text, str) and text.strip()]
    language = next((row[name] for name in _LANGUAGES if isinstance(row.get(name), str) and row[name]), None)
    if language is not None:
        found.languages[language] += 1


def reference_tokens(text: str) -> int:
    """Count the tokens of a reference as BLEU's 13a does; of a text without spaces the characters."""
    return len("".join(text.split())) if is_unspaced(text) else len(bleu_scorer().tokenizer(text).split())


def _note_copies(rows: Sequence[Mapping[str, Any]], heard: Sequence[Sequence[Heard]], found: Survey) -> None:
    first_name: dict[Any, str] = {}
    copies: dict[str, None] = {}  # in their order
    first_row: dict[Any, str] = {}
    for row, sounds in zip(rows, heard, strict=True):
        for sound in sounds:
            same = (sound.recording, sound.start, sound.end)
            first = first_name.setdefault(same, sound.name)
            if first != sound.name:
                copies[f"{sound.name} is {first}"] = None
        texts = (str(row.get("prompt")), str(row.get("reference")))
        same = (*texts, *((sound.recording, sound.start, sound.end) for sound in sounds))
        first = first_row.setdefault(same, row_name(row)) if sounds else None
        if first not in (None, row_name(row)):
            found.repeated.append(f"{row_name(row)} is {first}")
    found.copies = list(copies)

"""LongAudio (Ghosh et al., Audio Flamingo 2 and 3): open-ended questions on DailyTalk, Europarl-ST and VoxPopuli.

Its JSON files name audio that the source corpora have in another form: whole dialogues of DailyTalk's turns, stretches
of Europarl-ST speeches (the seconds are in the name), speaker turns of VoxPopuli.
"""

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from leaf.data.corpora.items import Clip, Item, Options, Refusal
from leaf.data.corpora.tables import find, json_list, table
from leaf.data.corpora.wordings import Wordings, wordings_of
from leaf.data.rows import AUDIO_PLACE
from leaf.errors import DataError

_SEVERAL_DAYS = "sounds of several days"
_NEEDED = ("id", "sound", "conversations")
_STRETCH = re.compile(r"(?P<speech>.+)_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)")
_TURN = re.compile(r"(?P<session>(?P<date>\d{8}).*?)-(?P<language>[a-z]{2})_(?P<turn>.+)")


def dailytalk(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield questions on whole dialogues; the turns of dialogue d are `data/d/<turn>_<speaker>_d<d>.wav`."""
    words, dialogues = wordings_of("longaudio", options.wordings), find(source, "data")
    for number, entry in enumerate(json_list(find(source, "DailyTalk_LongAudio.json"), _NEEDED)):
        name = f"dailytalk-{number}"
        sounds = {PurePosixPath(sound).stem for sound in _sounds(entry)}
        if len(sounds) > 1:
            yield Refusal(name, "sounds of several dialogues")
            continue
        (dialogue,) = sounds
        named = [(re.match(r"(\d+)_", path.name), path) for path in (dialogues / dialogue).glob("*.wav")]
        turns = sorted((int(turn[1]), path) for turn, path in named if turn is not None)
        if not turns:
            yield Refusal(name, "audio missing")
            continue
        clips = tuple(Clip(path) for _, path in turns)
        yield _item(name, entry, clips, recording=f"dailytalk/{dialogue}", words=words)


def parliament(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield questions on Europarl-ST and VoxPopuli together.

    Both have debates of the European Parliament, and both have the years 2009 to 2012. So what a split keeps whole is
    the day of the sitting, over both corpora.
    """
    found, words = False, wordings_of("longaudio", options.wordings)
    for name, read in (("Europarl_LongAudio.json", _europarl), ("VoxPopuli_LongAudio.json", _voxpopuli)):
        for file in sorted(source.rglob(name))[:1]:
            found = True
            yield from read(file, source, words)
    if not found:
        raise DataError(f"{source} has neither Europarl_LongAudio.json nor VoxPopuli_LongAudio.json, at any depth.")


def _europarl(file: Path, source: Path, words: Wordings) -> Iterator[Item | Refusal]:
    """Yield stretches of `<language>/audios/<speech>.m4a`; the name of a sound is `<speech>_<start>_<end>.wav`."""
    for number, entry in enumerate(json_list(file, _NEEDED)):
        name = f"europarl-{number}"
        matches = [_STRETCH.fullmatch(PurePosixPath(sound).stem) for sound in _sounds(entry)]
        parts = [match for match in matches if match is not None]
        dates = [re.search(r"\d{8}", part["speech"]) for part in parts]
        days = {date[0] for date in dates if date is not None}
        if len(parts) < len(matches) or None in dates:
            yield Refusal(name, "the sound's name is not speech_start_end")
            continue
        if len(days) > 1:
            yield Refusal(name, _SEVERAL_DAYS)
            continue
        clips = tuple(Clip(_speech(source, part["speech"]), float(part["start"]), float(part["end"])) for part in parts)
        yield _item(name, entry, clips, recording=f"parliament/{days.pop()}", words=words)


def _speech(source: Path, speech: str) -> Path:
    """Find a Europarl-ST speech; one that is already converted to wav or flac is preferred."""
    folder = _speeches(source, speech.split(".")[0])
    for suffix in (".wav", ".flac"):
        if (folder / f"{speech}{suffix}").is_file():
            return folder / f"{speech}{suffix}"
    return folder / f"{speech}.m4a"


@lru_cache(maxsize=16)
def _speeches(source: Path, language: str) -> Path:
    return find(source, f"{language}/audios")


def _voxpopuli(file: Path, source: Path, words: Wordings) -> Iterator[Item | Refusal]:
    """Yield speaker turns: `transcribed_data/en/<year>/<turn>.ogg`, else cut from the session they belong to.

    Sessions are `raw_audios/en/<year>/<session>_en.ogg`, the cuts the `vad` column of `asr_en.tsv.gz`, in seconds.
    """
    entries = list(enumerate(json_list(file, _NEEDED)))
    wanted = {PurePosixPath(sound).stem for _, entry in entries for sound in _sounds(entry)}
    annotations = sorted(source.rglob("asr_en.tsv.gz"))[:1]
    cuts: dict[str, list[tuple[float, float]]] = {}
    for path in annotations:
        for row in table(path, ("session_id", "id_", "vad"), delimiter="|"):
            turn = f"{row['session_id']}-{row['id_']}"
            if turn in wanted:
                cuts[turn] = _cuts(row["vad"])
    for number, entry in entries:
        yield _turns(f"voxpopuli-{number}", entry, source, cuts, words)


def _cuts(cell: str) -> list[tuple[float, float]]:
    """Read the stretches of a `vad` cell, (start, end) in seconds; none if it is no list of such."""
    stretches = _literal(cell)
    try:
        cuts = [(float(start), float(end)) for start, end in stretches]
    except (TypeError, ValueError):
        return []
    return cuts if all(0 <= start < end < math.inf for start, end in cuts) else []


def _turns(
    name: str, entry: dict[str, Any], source: Path, cuts: dict[str, list[tuple[float, float]]], words: Wordings
) -> Item | Refusal:
    """Make the item of an entry from the clips of its turns."""
    matches = [_TURN.fullmatch(PurePosixPath(sound).stem) for sound in _sounds(entry)]
    turns = [match for match in matches if match is not None]
    if len(turns) < len(matches):
        return Refusal(name, "the sound's name is not session-language_turn")
    days = {turn["date"] for turn in turns}
    if len(days) > 1:
        return Refusal(name, _SEVERAL_DAYS)
    clips = [_turn(source, turn, cuts) for turn in turns]
    if not all(clips):
        return Refusal(name, "the vad cell is no list of stretches")
    heard = tuple(chain.from_iterable(clips))
    return _item(name, entry, heard, recording=f"parliament/{days.pop()}", words=words)


def _turn(source: Path, match: re.Match[str], cuts: dict[str, list[tuple[float, float]]]) -> list[Clip]:
    turn, language, year = match[0], match["language"], match["date"][:4]
    segment = source / "transcribed_data" / language / year / f"{turn}.ogg"
    session = source / "raw_audios" / language / year / f"{match['session']}_{language}.ogg"
    if segment.is_file() or turn not in cuts or not session.is_file():
        return [Clip(segment)]  # where that is missing too, the refusal names it
    return [Clip(session, start, end) for start, end in cuts[turn]]


def _item(
    name: str, entry: dict[str, Any], clips: tuple[Clip, ...], *, recording: str, words: Wordings
) -> Item | Refusal:
    """Make an item of an entry's first question and answer; multiple choice is left out, as in the published runs."""
    turns = _conversation(entry["conversations"])
    said = next((turn["value"] for turn in turns if turn.get("from") == "human"), "").strip()
    answer = next((turn["value"] for turn in turns if turn.get("from") == "gpt"), "").strip()
    question = re.sub(r"\s*<sound>\s*", " ", said).strip()
    if "Choose the correct" in question or answer.startswith("("):
        return Refusal(name, "multiple choice")
    # The published split: the first eight hexadecimal digits of the id's MD5, a tenth test and a tenth validation.
    fraction = int(hashlib.md5(str(entry["id"]).encode(), usedforsecurity=False).hexdigest()[:8], 16) / 16**8
    published = "test" if fraction < 0.1 else "validation" if fraction < 0.2 else "train"
    asked = {"question": question, "asked": said.replace("<sound>", AUDIO_PLACE)}
    worded = words.put(question, f"longaudio/{recording}/{question}", **asked)
    prompt, test = worded if question else ("", "")
    return Item(name, clips, prompt, answer, recording, published=published, test_prompt=test)


def _conversation(raw: Any) -> list[dict[str, str]]:
    """Read the turns of a conversation; some files have them as text, in JSON or in Python's own notation."""
    turns = _literal(raw) if isinstance(raw, str) else raw
    if not isinstance(turns, list | tuple):
        return []
    return [turn for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]


def _literal(text: str) -> Any:
    """Parse a text in JSON or in Python's own notation; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _sounds(entry: dict[str, Any]) -> list[str]:
    sound = entry["sound"]
    return [str(name) for name in sound] if isinstance(sound, list) and sound else [str(sound)]

"""CoVoST 2 (Wang et al., arXiv 2007.10310): translations of Common Voice clips, any of its language pairs."""

import re
from collections.abc import Iterator
from pathlib import Path

from leaf.data.corpora.items import Clip, Item, Options, Refusal
from leaf.data.corpora.tables import find, table
from leaf.data.corpora.wordings import wordings_of
from leaf.errors import DataError

LANGUAGES = {
    "ar": "Arabic",
    "ca": "Catalan",
    "cy": "Welsh",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "lv": "Latvian",
    "mn": "Mongolian",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "sl": "Slovenian",
    "sv-SE": "Swedish",
    "ta": "Tamil",
    "tr": "Turkish",
    "zh-CN": "Chinese",
}
_ESCAPE = "\\"  # as CoVoST's own scripts read its tables and Common Voice's
# The publisher's split column also keeps the splits of CoVoST 1, whose training split is a part of this one's.
_SPLITS = {"train": "train", "train_covost": "train", "dev": "validation", "test": "test"}


def items(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield the translated clips of a pair, in the publisher's splits.

    The clips are in a folder `clips` below the source, with Common Voice's `validated.tsv` beside it.
    """
    origin, _, goal = options.pair.partition("_")
    if origin not in LANGUAGES or goal not in LANGUAGES or "en" not in (origin, goal) or origin == goal:
        raise DataError(f"pair is {options.pair!r}; give two of {', '.join(LANGUAGES)}, one of them en, such as en_de.")
    words = wordings_of("covost2", options.wordings)
    languages = {"origin": LANGUAGES[origin], "language": LANGUAGES[goal]}
    translations = find(source, f"covost_v2.{options.pair}.tsv")
    clips = _clips(source, origin)
    voices = {
        row["path"]: (row["client_id"], row["sentence"])
        for row in table(find(clips.parent, "validated.tsv"), ("path", "client_id", "sentence"), escape=_ESCAPE)
    }
    for number, row in enumerate(table(translations, ("path", "translation", "split"), escape=_ESCAPE)):
        split = _SPLITS.get(row["split"])
        if split is None:
            yield Refusal(str(number), "a split of CoVoST 1 only")
            continue
        if not re.fullmatch(r"[\w.-]+", row["path"]) or row["path"] not in voices:
            yield Refusal(str(number), "no such clip in validated.tsv")
            continue
        speaker, sentence = voices[row["path"]]
        asked = words.put(sentence.strip(), f"covost/{options.pair}/{row['path']}", **languages)
        yield Item(
            id=str(number),
            audio=(Clip(clips / row["path"]),),
            prompt=asked.prompt,
            test_prompt=asked.test,
            reference=row["translation"],
            recording=f"commonvoice/{origin}/{speaker}",
            split=split,
            text=sentence,
            language=goal,
        )


def _clips(source: Path, language: str) -> Path:
    """Find Common Voice's folder of clips: the language's own where there are several below the source."""
    folders = [path for path in sorted(source.rglob("clips")) if path.is_dir()]
    of_language = [path for path in folders if path.parent.name == language] or folders
    if len(of_language) != 1:
        raise DataError(
            f"{source} has {len(of_language)} folders `clips` that may be Common Voice's {language}; put exactly one "
            f"there, as {language}/clips beside {language}/validated.tsv."
        )
    return of_language[0]

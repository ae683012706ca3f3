"""How a corpus puts its questions to the model: in the published runs' words, in leaf's own, or in those of a file.

The published wordings are facts of the protocol. They are quoted from the authors' code (github.com/Grimoid/LEAF at
c7623e3, Apache-2.0: scripts/data_prep/prepare_*.py, scripts/voicebench/voicebench_generate.py), which writes <|audio|>
for {audio}. CoVoST 2 was English to German there; here {origin} and {language} stand for the two.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leaf.data.hashing import stable_choice
from leaf.data.rows import AUDIO_PLACE
from leaf.errors import DataError, did_you_mean, shown
from leaf.files import file_mark
from leaf.yaml_text import parse_yaml

PUBLISHED = {
    "librisqa": (
        "Listen to the audio {audio} and answer the following question: {question}",
        "{audio} Please answer this question about the spoken passage: {question}",
        "You will hear speech in {audio}. Answer: {question}",
    ),
    "covost2": (
        "{audio} Listen to the speech and translate it into {language}.",
        "Translate the audio {audio} from {origin} to {language}.",
        "You will hear {origin} speech in {audio}. Provide the {language} translation.",
    ),
    "longaudio": ("{asked}",),
    "voicebench": ("You will hear a request in {audio}. Respond to it.",),
}
# CoVoST 2 was tested with the first of its wordings alone.
PUBLISHED_TEST = {"covost2": PUBLISHED["covost2"][:1]}
OURS = {
    "librisqa": (
        "Answer the question about what is said: {question}",
        "{question} Answer from the recording.",
        "Someone reads aloud. {question}",
    ),
    "covost2": (
        "Translate the speech into {language}.",
        "What does the speaker say, in {language}?",
        "Give a {language} translation of the recording.",
    ),
    "longaudio": ("{question}", "Listen, then answer. {question}", "{question} Answer in a sentence or two."),
    "voicebench": (
        "Answer what the speaker asks.",
        "Listen to the request and respond to it.",
        "Reply to the speaker helpfully.",
    ),
}
# What a wording may say in braces. {asked} is LongAudio's own question, with {audio} where its <sound> is.
FIELDS = {"librisqa": ("question",), "covost2": ("origin", "language"), "longaudio": ("question", "asked")}
_NEEDED = {"librisqa": ("question",), "longaudio": ("question", "asked")}  # one of these
DEFAULT, OWN = "published", "leaf"


class Worded(NamedTuple):
    """A question in words; `test` is empty where the test split has no words of its own."""

    prompt: str
    test: str


@dataclass(frozen=True)
class Wordings:
    """The wordings of a corpus.

    Attributes:
        texts: with {audio} where the audio goes; without it, the audio comes first.
        test: those of the test split, where it has its own.
        by_md5: choose by the MD5 of the question or sentence, as the published code does; else by leaf's stable hash.
    """

    texts: Sequence[str]
    test: Sequence[str] = ()
    by_md5: bool = True

    def put(self, said: str, key: str, **fields: str) -> Worded:
        """Word a question.

        Args:
            said: the question or sentence whose MD5 chooses.
            key: what leaf's stable hash chooses by.
            fields: what the braces stand for.
        """
        chosen = [
            "" if not texts else _by_md5(texts, said) if self.by_md5 else stable_choice(texts, key)
            for texts in (self.texts, self.test)
        ]
        pattern = re.compile("|".join(rf"\{{{name}\}}" for name in fields) or "(?!)")
        return Worded(*(pattern.sub(lambda found: fields[found[0][1:-1]], text) for text in chosen))


def wordings_of(corpus: str, given: str | None) -> Wordings:
    """Find the wordings of a corpus.

    Args:
        corpus: of `PUBLISHED`.
        given: published (None is the same), leaf, or a YAML file with the lists `wordings` and, where the test split
            has its own, `test`.

    Raises:
        DataError: neither, or a file that cannot be used.
    """
    if given in (None, DEFAULT):
        return Wordings(PUBLISHED[corpus], PUBLISHED_TEST.get(corpus, ()))
    if given == OWN:
        return Wordings(OURS[corpus], by_md5=False)
    return _of_file(corpus, Path(str(given)).expanduser())


def wordings_mark(given: str | None) -> str:
    """Name wordings as a preparation notes them: a file by its checksum."""
    file = Path(given or DEFAULT).expanduser()
    return file_mark(file) if given not in (None, DEFAULT, OWN) and file.is_file() else str(given or DEFAULT)


def _of_file(corpus: str, file: Path) -> Wordings:
    if not file.is_file():
        hint = did_you_mean(str(file), (DEFAULT, OWN))
        raise DataError(f"--wordings is {shown(str(file))}.{hint} Give {DEFAULT}, {OWN}, or a YAML file of your own.")
    try:
        held = parse_yaml(file.read_text(encoding="utf-8"), f"the wordings {file}")
    except UnicodeDecodeError as error:
        raise DataError(f"The wordings {file} cannot be read: {error}. Save the file in UTF-8.") from error
    keys = ("wordings", "test")
    lists = [held.get(key) or [] for key in keys] if isinstance(held, dict) and not {*held} - {*keys} else []
    if not (lists and lists[0] and all(isinstance(texts, list) for texts in lists)):
        raise DataError(
            f"{file} holds {shown(held)}; give `wordings: [...]` and, if the test split differs, `test: [...]`."
        )
    for text in (text for texts in lists for text in texts):
        _check(corpus, file, text)
    return Wordings(tuple(lists[0]), tuple(lists[1]))


def _check(corpus: str, file: Path, text: object) -> None:
    allowed = FIELDS.get(corpus, ())
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{file} has the wording {shown(text)}; give texts, in quotation marks.")
    if found := re.search(r"<\|.*?\|>", text):  # a prompt with a model's own placeholder gets no chat template
        raise DataError(f"{file} has the wording {shown(text)}; write {AUDIO_PLACE} in place of {found[0]}.")
    used = re.findall(r"\{(\w*)\}", text)
    unknown = [name for name in used if name not in (*allowed, AUDIO_PLACE[1:-1])]
    unknown += re.findall(r"[{}]", re.sub(r"\{\w*\}", "", text))  # a brace too many, or with more than a name in it
    lacking = corpus in _NEEDED and not {*used} & {*_NEEDED[corpus]}
    if unknown or lacking or used.count(AUDIO_PLACE[1:-1]) + used.count("asked") > 1:
        names = ", ".join(f"{{{name}}}" for name in allowed)
        needed = f", and one of {', '.join(f'{{{name}}}' for name in _NEEDED[corpus])} is needed" if lacking else ""
        raise DataError(
            f"{file} has the wording {shown(text)}; in braces {names + ' and ' if names else ''}once {AUDIO_PLACE} are "
            f"allowed{needed}."
        )


def _by_md5(texts: Sequence[str], said: str) -> str:
    """Choose as the published code does: the first eight hexadecimal digits of the MD5, modulo the number of texts."""
    digest = hashlib.md5(said.encode(), usedforsecurity=False).hexdigest()
    return texts[int(digest[:8], 16) % len(texts)]

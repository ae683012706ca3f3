"""What `leaf data prepare` knows of a corpus: its items, what was refused and why, and its entry in `CORPORA`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from leaf.data.decoding import Encoded


@dataclass(frozen=True)
class Clip:
    """A stretch of speech: seconds [start, end) of a file, or of an encoded file in memory.

    Attributes:
        path: the publisher's file; None where the publisher ships bytes inside a table.
        start, end: in seconds; end None is the end of the file.
        data: the encoded file where there is no path.
    """

    path: Path | None = None
    start: float = 0.0
    end: float | None = None
    data: bytes | None = None

    @property
    def whole(self) -> bool:
        """Tell whether the clip is a file as it is on the disk."""
        return self.path is not None and self.start == 0.0 and self.end is None

    @property
    def seconds(self) -> float:
        """Compute how long a stretch is, 0 where only the file itself says it."""
        return 0.0 if self.end is None else self.end - self.start

    @property
    def source(self) -> str:
        """Identify what is heard, wherever it is written: the publisher's file and stretch, or a hash of the bytes."""
        duration = None if self.end is None else self.end - self.start
        path = None if self.path is None else str(self.path)
        return Encoded(path, self.data, self.start, duration).source


@dataclass(frozen=True)
class Item:
    """One example as the publisher gives it, before its audio was checked.

    Attributes:
        id: unique in the corpus.
        audio: the clips, joined in order.
        prompt: what the model is asked, with {audio} where the audio goes if that is not first.
        test_prompt: the same for the test split, where it is asked in other words.
        reference: the answer or translation; empty where a corpus is for judges only, None where rewards read none.
        recording: what has to stay in one split: a session, a speaker, a sitting.
        split: the publisher's split; None where there is none, and `recording` decides.
        published: the split of the published runs or of the publisher, where recordings may be on both sides.
        text: the transcript, where there is one.
        language: of the reference, such as zh-CN, where the corpus states it.
        references: all texts that are right, `reference` first, where there are several.
        own_validation: the publisher has a validation split, so none is cut out of its training split.
    """

    id: str
    audio: tuple[Clip, ...]
    prompt: str
    reference: str | None
    recording: str
    split: str | None = None
    published: str | None = None
    text: str = ""
    language: str = ""
    references: tuple[str, ...] = ()
    own_validation: bool = False
    test_prompt: str = ""


@dataclass(frozen=True)
class Refusal:
    """An entry of the corpus that cannot be used, and why. Reasons are counted, so there are no names in them."""

    id: str
    reason: str


@dataclass(frozen=True)
class Options:
    """What the user may set for a corpus.

    Attributes:
        pair: source and target language of a translation corpus, as en_de.
        columns: ours → theirs, for corpora that are read by column names.
        splits: theirs → train, validation, test or none, for splits with other names.
        config: configuration of a data set on the hub.
        wordings: see leaf.data.corpora.wordings; None is published, and for corpora that are read by column names none.
    """

    pair: str = "en_de"
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    wordings: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A corpus: where its parts are, its licence, how it is split and read.

    Attributes:
        items: (source, options) → items and refusals; it opens no audio, so it is fast.
        layout: what `--from` must hold, in words.
        validation, test: shares of the recordings without a publisher's split. Of a publisher's training split only
            `validation` is cut out, and only where there is no validation split.
        max_seconds: longer audio is refused, as in the published runs; None accepts all.
        judged_only: there are no references, only judges.
        remote: the source may also be a name that `datasets` looks up on the hub.
    """

    description: str
    licence: str
    layout: str
    items: Callable[[Path, Options], Iterator[Item | Refusal]]
    validation: float = 0.0
    test: float = 0.0
    max_seconds: float | None = None
    judged_only: bool = False
    remote: bool = False

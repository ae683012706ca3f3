"""LibriSQA part I (Zhao et al., arXiv 2308.10390): free-form questions on LibriSpeech utterances."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from leaf.data.corpora.items import Clip, Item, Options, Refusal
from leaf.data.corpora.tables import json_list
from leaf.data.corpora.wordings import wordings_of
from leaf.errors import DataError

FILES = {"train": "LibriSQA-PartI-train.json", "test": "LibriSQA-PartI-test.json"}


def items(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield the questions of both files. Splits keep LibriSpeech's speakers whole."""
    found = {split: sorted(source.rglob(name)) for split, name in FILES.items()}
    if not any(found.values()):
        raise DataError(f"{source} has neither {' nor '.join(FILES.values())}, at any depth. Copy them there.")
    words = wordings_of("librisqa", options.wordings)
    corpus = [path.parent for path in sorted(source.rglob("LibriSpeech"))[:1]] or [source]
    for split, files in found.items():
        for file in files[:1]:
            for number, entry in enumerate(json_list(file, ("speech_path", "question", "answer"))):
                name = f"{split}-{number}"
                path = PurePosixPath(str(entry["speech_path"]))
                if len(path.parts) < 3 or path.is_absolute() or ".." in path.parts:
                    yield Refusal(name, "speech_path is not set/speaker/chapter/utterance")
                    continue
                question = str(entry["question"] or "").strip()
                asked = words.put(question, f"librisqa/{path}/{entry['question']}", question=question)
                inside = path if path.parts[0] == "LibriSpeech" else "LibriSpeech" / path
                yield Item(
                    id=name,
                    audio=(Clip(_recording(corpus[0] / inside)),),
                    prompt=asked.prompt if question else "",
                    test_prompt=asked.test if question else "",
                    reference=str(entry["answer"] or ""),
                    recording=f"librispeech/{path.parts[-3]}",
                    split=split,
                    text=str(entry.get("text") or ""),
                )


def _recording(path: Path) -> Path:
    """Find the file of a recording: LibriSpeech is published as flac, and the questions may call it wav."""
    ways = (path, path.with_suffix(".flac"), path.with_suffix(".wav"))
    return next((way for way in ways if way.is_file()), path)

"""Task family asterisk: real telephone prompts, joined to new utterances, for QA, translation and transcription.

The recordings are of one professional voice in the telephone band (Allison Smith; CC-BY-SA 3.0, see
recordings/ATTRIBUTION.md). A test row combines recordings that training combines otherwise, in the same voice: it tests
whether a model understands what is said, not whether it understands new speakers. Splits follow a hash of the English
text without case and punctuation, and are the same for every task. `test_heldout` keeps whole templates and slot values
apart (see leaf.data.asterisk.templates). Natural sentences are recordings used nowhere else, so those of the test split
are heard in no training row.
"""

import csv
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from leaf.data.asterisk.templates import TEMPLATES, Utterance
from leaf.data.asterisk.words import QUESTIONS
from leaf.data.audio import JOIN_PAUSE
from leaf.data.hashing import stable_choice, stable_fraction

DATA = Path(__file__).parent / "recordings"
SPLITS = ("train", "validation", "test", "test_heldout")
SIZES = {"train": 6000, "validation": 300, "test": 500, "test_heldout": 500}  # composed utterances
LONGEST = 7.5  # seconds
LICENCE = "CC-BY-SA-3.0 (recordings: Allison Smith, Digium)"
_SEED = "asterisk-1"

PROMPTS = {
    "asr": ("Write down what the speaker says.", "Transcribe the speech.", "Write the spoken words."),
    "fr": ("Translate the speech into French.", "Say this in French.", "Give the French translation of the speech."),
    "it": ("Translate the speech into Italian.", "Say this in Italian.", "Give the Italian translation of the speech."),
}


def split_key(text: str) -> str:
    """Reduce a text to lower-case words without punctuation: the key that splits follow."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower().replace("-", " ")))


def split_of(text: str, *, held_out: bool = False, natural: bool = False) -> str:
    """Choose the split of an English text by its hash, unless it is held out.

    Of composed texts 4 % are validation and 8 % test; of natural sentences, which are few, 10 % and 25 %.
    """
    if held_out:
        return "test_heldout"
    fraction = stable_fraction(f"{_SEED}/split/{split_key(text)}")
    validation, test = (0.10, 0.35) if natural else (0.04, 0.12)
    return "validation" if fraction < validation else "test" if fraction < test else "train"


@lru_cache(maxsize=1)
def recordings() -> dict[str, float]:
    """Read which recordings are shipped: name → seconds."""
    with (DATA / "recordings.tsv").open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: float(row["seconds"]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        }


def seconds_of(parts: tuple[str, ...]) -> float:
    """Compute the length of joined recordings, in seconds."""
    return sum(recordings()[name] for name in parts) + JOIN_PAUSE * (len(parts) - 1)


@lru_cache(maxsize=1)
def utterances() -> dict[str, tuple[Utterance, ...]]:
    """Compose every split from distinct texts of at most 7.5 s; its natural sentences come last."""
    rng = random.Random(_SEED)
    templates, shares = list(TEMPLATES), list(TEMPLATES.values())
    found: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    while any(len(found[split]) < SIZES[split] for split in SPLITS):
        utterance = rng.choices(templates, shares)[0](rng)
        split = split_of(utterance.english, held_out=utterance.held_out)
        key = split_key(utterance.english)
        if key in seen or len(found[split]) >= SIZES[split] or seconds_of(utterance.parts) > LONGEST:
            continue
        seen.add(key)
        found[split].append(utterance)
    for utterance in _natural():
        if split_key(utterance.english) not in seen:
            found[split_of(utterance.english, natural=True)].append(utterance)
    return {split: tuple(items) for split, items in found.items()}


def _natural() -> Iterator[Utterance]:
    with (Path(__file__).parent / "natural.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            question = (("natural", row["question"], row["answer"]),)
            yield Utterance("natural", (row["recording"],), row["english"], row["french"], row["italian"], question)


def _questions(utterance: Utterance) -> Iterator[tuple[str, str, str]]:
    """Yield (question kind, question, answer), the wording chosen by a stable hash."""
    for kind, subject, answer in utterance.questions:
        if kind == "natural":
            yield kind, subject, answer
        else:
            wording = stable_choice(QUESTIONS[kind], f"{_SEED}/wording/{kind}/{subject}/{utterance.english}")
            yield kind, wording.format(subject), answer


def rows(variant: str, split: str) -> list[dict[str, Any]]:
    """Make the rows of one task variant (qa, fr, it, asr) and split.

    In `qa`, training has a row for every question of an utterance; the other splits have one, chosen by hash.
    """
    made = []
    for number, utterance in enumerate(utterances()[split]):
        pairs: list[tuple[str, str, str]]
        if variant == "qa":
            pairs = list(_questions(utterance))
            if split != "train":
                pairs = [stable_choice(pairs, f"{_SEED}/question/{utterance.english}")]
        else:
            prompt = stable_choice(PROMPTS[variant], f"{_SEED}/prompt/{variant}/{utterance.english}")
            target = {"asr": utterance.english, "fr": utterance.french, "it": utterance.italian}[variant]
            pairs = [(variant, prompt, target)]
        for position, (kind, prompt, reference) in enumerate(pairs):
            made.append(
                {
                    "id": f"{split}-{number}-{position}",
                    "prompt": prompt,
                    "audio": [str(DATA / f"{name}.opus") for name in utterance.parts],
                    "reference": reference,
                    "text": utterance.english,
                    "kind": f"{utterance.kind}/{kind}",
                    "utterance": split_key(utterance.english),
                    "seconds": round(seconds_of(utterance.parts), 3),
                }
            )
    return made

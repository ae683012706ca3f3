"""What a user has: a checkpoint in a folder, and a manifest with its recordings."""

import soundfile

from leaf.files import write_rows
from tests.helpers import tiny


def save(model, processor, folder):
    """Save a checkpoint with its processor."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_manifest(path, splits=("train", "validation", "test"), count=4):
    """Write a manifest of `count` tiny rows for each split, and their recordings beside it."""
    lines = []
    for number, split in enumerate(splits):
        louder = 1 + 0.01 * number  # no recording of one split is heard in another
        for i, row in enumerate(tiny.rows(count)):
            audio = path.with_name(f"{split}{i}.wav")
            soundfile.write(audio, louder * row["audio"]["array"], row["audio"]["sampling_rate"])
            kept = {key: row[key] for key in ("prompt", "reference")}
            lines.append({**kept, "audio": audio.name, "split": split})
    write_rows(path, lines)

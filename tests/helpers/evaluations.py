"""Prediction files of two systems, their recordings, and the report's section about them."""

import json

import numpy as np
import soundfile

from leaf.evaluation.predictions import Predictions, meta_path
from leaf.files import read_rows, write_json, write_rows
from leaf.report.evaluation import evaluation_section
from leaf.report.page import page

REFERENCES = ["press one now please", "it is seven o'clock", "hello there", "two new messages"]
BEFORE = ["press two now", "it is seven o'clock", "hello", ""]
AFTER = ["press one now please", "it was seven o'clock", "hello", "two new messages"]
KINDS = ["menu", "time", "menu", "mail"]


def write(path, passes, *, references=REFERENCES, metrics=("exact_match", "wer"), lowercase=False, made_with=None):
    items = [
        {"id": f"row{i}", "utterance": f"u{i}", "prompt": f"question {i}", "text": f"speech {i}", "kind": KINDS[i % 4]}
        | {"reference": reference}
        for i, reference in enumerate(references)
    ]
    seeds: list[int | None] = [42 + i for i in range(len(passes))]
    made = Predictions(path.stem, items, passes, seeds, [[False] * len(items) for _ in passes])
    decoding = {"greedy": False, "temperature": 0.9, "top_p": 0.9}
    made.meta = {"predictions": 1, "made_with": {"decoding": decoding, **(made_with or {})}, "lowercase": lowercase}
    made.meta["metrics"] = {name: {} for name in metrics}
    made.write(path)
    return path


def with_reward(file, values):
    """Give the only pass of a prediction file values of the metric `reward`; None where it is not scored."""
    rows = zip(read_rows(file), values, strict=True)
    kept = ((row, [0.0, 0.0] if value is None else [value, 1.0]) for row, value in rows)
    write_rows(file, [{**row, "statistics": {"reward": value}} for row, value in kept])
    meta = json.loads(meta_path(file).read_text())
    write_json(meta_path(file), meta | {"metrics": {"reward": {"signature": "reward|1*half"}}})


def recordings(folder, count=4):
    rows = []
    for i in range(count):
        wave = 0.5 * np.sin(2 * np.pi * (300 + 50 * i) * np.arange(16000) / 16000)
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), 16000)
        row = {"id": f"row{i}", "prompt": f"question {i}", "audio": f"{i}.wav", "reference": REFERENCES[i]}
        rows.append(row | {"split": "test"})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def of(data, name):
    return next(metric for metric in data["metrics"] if metric["name"] == name)


def drawn(*runs, **options):
    """Return the evaluation section, which has something to show."""
    section = evaluation_section(*runs, **options)
    assert section is not None
    return section


def html(section):
    return page("runs", [section])

"""Recorded groups made of words in place of token ids, run directories that hold them, and what the terminal shows."""

import io
import json
from types import SimpleNamespace

import torch
import yaml
from rich.console import Console

from leaf.config import LeafConfig, to_dict
from leaf.credit import SetDraw
from leaf.credit.sets import unordered_set
from leaf.model.sampling import Group
from leaf.report import terminal
from leaf.runs.directory import RunDirectory
from leaf.train.records import group_record
from leaf.train.rollout import shares_of

# The group of docs/method.md, worked by hand there.
WORDS = [
    ["press", " one", " to", " leave", "</s>"],
    ["press", " one", " to", " exit", "</s>"],
    ["press", " two", " to", " leave", "</s>"],
    ["dial", " one", "</s>"],
]
REWARDS = [1.0, 0.6, 0.2, 0.2]
SURPRISAL = [[0.1, 0.3, 0.1, 0.9, 0.1], [0.1, 0.3, 0.1, 1.2, 0.1], [0.1, 1.6, 0.2, 0.4, 0.1], [2.5, 0.3, 0.2]]


def record(words, rewards, surprisal=None, *, advantages=None, truncated=None, distinct=False, **changes):
    """Record a group as the trainer does; of distinct completions the surprisal says their probabilities."""
    vocabulary = sorted({word for row in words for word in row})
    width = max(map(len, words), default=0)
    lengths = torch.tensor([len(row) for row in words])
    tokens = torch.tensor([[*map(vocabulary.index, row), *[0] * (width - len(row))] for row in words], dtype=torch.long)
    surprisal = surprisal or [[0.5] * len(row) for row in words]
    nats = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in surprisal], dtype=torch.float64)
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=lambda ids: [vocabulary[i] for i in ids],
        batch_decode=lambda rows, **_: ["".join(vocabulary[i] for i in ids if vocabulary[i] != "</s>") for ids in rows],
    )
    shape = (len(words), width)
    group = Group(
        None,  # type: ignore[arg-type]
        tokens.reshape(shape),
        lengths,
        nats.reshape(shape),
        torch.tensor([False] * len(words) if truncated is None else truncated),
        SetDraw.of(-nats.sum(1)) if distinct else None,
    )
    row = {"id": "train-1", "prompt": "How do I leave?", "audio": ["a.opus"], "text": None, "reference": "press one"}
    earned = torch.tensor([torch.nan if r is None else r for r in rewards], dtype=torch.float64)
    share = shares_of(group, unordered_set, len(group.lengths))
    given_ = torch.zeros(shape) if advantages is None else torch.tensor(advantages)
    # What was written and read again, not what was in memory.
    return json.loads(json.dumps({"step": 1, **group_record(row | changes, group, earned, given_, share, tokenizer)}))


def worked(**changes):
    """Record the group of docs/method.md."""
    return record(WORDS, REWARDS, SURPRISAL, **changes)


def write_run(path, records, **recipe):
    """Write a run directory of stage rl with recorded groups."""
    path.mkdir()
    config = LeafConfig(output_dir=str(path), **recipe)
    (path / "recipe.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (path / "groups.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return RunDirectory(path)


def shown(view, *, width=None):
    """Print a view as a pipe gets it, or with a width as a terminal of that width does."""
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor", "width": width} if width else {}
    terminal.print_group(Console(file=file, highlight=False, markup=False, **options), view)
    return file.getvalue()


def tree_of(text):
    """Take the lines of the tree out of what is shown."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("root"))
    return lines[start : lines.index("", start)]

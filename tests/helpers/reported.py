"""Run directories as a trainer leaves them, hostile texts and all, and panels of the report about them."""

import json

import yaml

from leaf.config import LeafConfig, RunConfig, to_dict

EVIL = "<img src=x onerror=\"document.title='owned'\">"


def group(step, rewards=(1.0, 0.0, 0.5, 0.5)):
    """Four completions: `a b c` twice, `a b d`, `a e`; the ids are the letters."""
    ids = [[1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 5]]
    letters = {1: "a", 2: "Ġb", 3: "Ġc", 4: "Ġd", 5: "Ġe"}
    advantages = [[0.5, 0.5, 0.5], [-1.0, -1.0, -1.0], [0.1, 0.1, 0.1], [0.0, 0.0]]
    return {
        "step": step,
        "id": "x",
        "prompt": f"say it {EVIL}",
        "audio": [],
        "text": None,
        "reference": EVIL,
        "completions": ["a b c", "a b c", "a b d", "a e"],
        "rewards": list(rewards),
        "truncated": [True] * 4,
        "token_ids": ids,
        "tokens": [[letters[i] for i in row] for row in ids],
        "surprisal": [[0.1, 0.2, 2.0], [0.1, 0.2, 2.0], [0.1, 0.2, 3.0], [0.1, 2.5]],
        "advantages": advantages,
        "boundaries": [2],
        "tree": {"parent": [-1, 0, 1, 1, 0]},
    }


def made(
    path,
    *,
    steps=6,
    seed=0,
    offset=0.0,
    groups=True,
    recipe: type[RunConfig] = LeafConfig,
    model="tiny",
    task="asterisk_qa",
    **settings,
):
    """Write a run directory as a trainer leaves it."""
    path.mkdir(parents=True)
    config = recipe(model=model, task=task, seed=seed, output_dir=str(path), max_steps=steps, **settings)
    (path / "recipe.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (path / "versions.json").write_text('{"torch": "2"}')
    rows = [
        {
            "step": i,
            "reward_mean": i / steps + offset,
            "kl": 0.01 * i,
            "skipped_steps": int(i > 2),
            "reward_errors": 1,
            "packed_tokens": 25.0,
            "plain_tokens": 100.0,
            "seconds/sample": 1.0,
            "seconds/update": 2.0,
            "seconds/step": 4.0,
            "grad_norm": None if i == 2 else 1.0,
        }
        for i in range(1, steps + 1)
    ]
    scored = [
        {"step": i, "bleu": 50.0 + i + offset, "bleu/low": 45.0 + i, "bleu/high": 55.0 + i, "truncated": 0.0}
        for i in (0, steps)
    ]
    files = {
        "metrics.jsonl": rows,
        "validation.jsonl": scored,
        "groups.jsonl": [group(1), group(steps)] if groups else [],
    }
    for name, lines in files.items():
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def panel(section, title):
    return next(one for one in section.data["panels"] if one["title"] == title)

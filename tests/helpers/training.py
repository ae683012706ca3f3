"""A trainer on the tiny model, its recipe, and what its run directory holds."""

import json
from typing import Any

import peft

from leaf import LeafTrainer
from leaf.config import LeafConfig
from tests.helpers import tiny


def length_reward(completions, **columns):
    """Something that differs between random completions."""
    return [len(text) / 20 for text in completions]


def recipe(tmp_path, **changes):
    values = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "prompts_per_rollout": 2,
        "num_completions": 4,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "eval_every": 2,
        "save_every": 1,
        "record_every": 1,
        "device": "cpu",
        "eval_items": 2,
    }
    return LeafConfig(**(values | changes))


def trainer(config, seed=0, **options) -> Any:
    model, processor = tiny.tiny_model()
    rows = tiny.rows(5)
    options = {"reward_funcs": [length_reward], "train_dataset": rows, "eval_dataset": rows[:2]} | options
    return LeafTrainer(model, args=config, processing_class=processor, say=lambda line: None, **options)


def lines(path, name):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def weights(directory):
    return peft.utils.load_peft_weights(str(directory))


def without_times(records):
    return [{k: v for k, v in record.items() if not k.startswith(("seconds", "memory"))} for record in records]

"""Train on data of your own with a reward of your own: a manifest, a function, RLTrainer.

    python examples/train_my_data.py --manifest my.jsonl --steps 20

A manifest is JSONL, CSV or TSV with the columns prompt, audio (a file) and reference. Without one, this script writes
one from the recordings that come with leaf. `leaf train` does the same from a recipe.
"""

import argparse
import json
from pathlib import Path

from leaf import LeafConfig, RLTrainer
from leaf.data import load


def brief(completions, reference, **columns):
    """Give 1 for a completion no longer than its reference, less for every further word, 0 at twice the length.

    A reward function gets all completions of a rollout and, as keyword arguments, the columns of their rows, one value
    per completion. It returns one number each, or None where it cannot say.
    """
    scores = []
    for ours, theirs in zip(completions, reference, strict=True):
        allowed = len(theirs.split())
        over = max(len(ours.split()) - allowed, 0)
        scores.append(max(1.0 - over / allowed, 0.0) if ours.strip() else 0.0)
    return scores


def write_manifest(path: Path, rows: int = 200) -> None:
    """Write a manifest of shipped recordings: spoken questions, split by recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for split, count in (("train", rows), ("validation", 40)):
            for row in load("asterisk_qa", split, limit=count):
                kept = {key: row[key] for key in ("prompt", "audio", "reference")}
                file.write(json.dumps({**kept, "split": split}, ensure_ascii=False) + "\n")


def main() -> None:
    """Train and say where the run is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="JSONL, CSV or TSV; none: one is written")
    parser.add_argument("--model", default="demo", help="checkpoint directory, hub id, or demo")
    parser.add_argument("--out", default="runs/my_data", help="run directory")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="5e-6 for models of 1 to 8 billion")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of the adapter; alpha is twice that")
    parser.add_argument("--dtype", default="auto", help="precision of the frozen weights")
    options = parser.parse_args()

    manifest = options.manifest
    if manifest is None:
        manifest = Path("build/my_data.jsonl")
        write_manifest(manifest)
    trainer = RLTrainer.from_recipe(
        LeafConfig(
            model=options.model,
            task=str(manifest),
            output_dir=options.out,
            reward_weights=[1.0, 0.2],
            max_steps=options.steps,
            prompts_per_rollout=4,
            num_completions=8,
            max_new_tokens=options.max_new_tokens,
            top_p=1.0,
            learning_rate=options.learning_rate,
            lora_r=options.lora_r,
            lora_alpha=2 * options.lora_r,
            lora_dropout=0.0,
            dtype=options.dtype,
            eval_every=10,
            eval_items=40,
            eval_greedy=True,
            record_every=5,
        ),
        rewards=["bleu", brief],  # by name, or your own
    )
    run = trainer.train()
    print(f"the run is in {run.path}; look at a group with `leaf tree {run.path}`")


if __name__ == "__main__":
    main()

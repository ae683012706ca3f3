"""Make the runs in this folder with version 0.1, for test_version_0_1.py, which resumes them with today's code.

In a checkout of version 0.1 (commit 146a090), with this file's path in place of MAKE and a folder to write to:

    PYTHONPATH=src:tests:tests/speech python MAKE FOLDER

Every run goes to its end; of its checkpoints only the one in the middle is kept, so it looks like a run that was killed
there, and its logs tell what the resumed run has to come to. `sample_project` makes what the recipes name.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import soundfile

SHARED = {
    "device": "cpu",
    "learning_rate": 3.0e-3,  # small enough that the last bits of a step stay the last bits of the next
    "warmup_steps": 1,
    "eval_every": 2,
    "eval_items": 2,
    "best_metric": "chrf",
    "save_every": 1,
    "keep_checkpoints": 9,
    "token_budget": 256,
    "lora_r": 1,
    "lora_layers": ["q_proj", "down_proj"],
}
ROLLOUTS = {
    "prompts_per_rollout": 2,
    "num_completions": 3,
    "max_new_tokens": 5,
    "completions_per_update": 4,
    "lora_dropout": 0.0,  # its noise falls on the rows of a forward, which later versions lay out otherwise
    "record_every": 0,
}


def sample_project(folder, model, processor, texts):
    """Write the checkpoint and the manifest that the recipes name."""
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    lines = []
    for i in range(6):
        time = np.arange(16000 * (2 + i % 3) // 4) / 16000
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 300 * (i + 1) * time), 16000)
        split = "train" if i < 4 else "validation"
        row = {"prompt": " ".join(texts[: 1 + i % 3]), "reference": texts[i % len(texts)], "audio": f"{i}.wav"}
        lines.append(json.dumps(row | {"split": split}))
    (folder / "data.jsonl").write_text("\n".join(lines))


def vowels(completions, **columns):
    """Reward something that differs between random completions."""
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


def _main(folder):
    import os

    import peft
    import tiny
    import torch
    import yaml
    from leaf.cli import app
    from leaf.run import RunDirectory
    from leaf.sft import sft
    from leaf.speech.policy import Policy
    from leaf.trainer import LeafTrainer
    from typer.testing import CliRunner

    from leaf.config import LeafConfig, SftConfig

    folder.mkdir()
    os.chdir(folder)
    sample_project(Path(), *tiny.tiny_model(), tiny.TEXTS)

    # rl, from the command line, over two epochs of two steps.
    recipe = {**SHARED, **ROLLOUTS, "model": "model", "task": "data.jsonl", "epochs": 2, "rewards": ["chrf"]}
    recipe |= {"on_reward_error": "skip", "reward_timeout": 60.0, "max_skipped_steps": 3, "output_dir": "rl"}
    Path("rl.yaml").write_text(yaml.safe_dump(recipe))
    CliRunner().invoke(app, ["train", "rl.yaml"], catch_exceptions=False)

    # rl, from a script with rows and a reward of its own.
    config = LeafConfig(**SHARED, **ROLLOUTS, max_steps=4, on_bad_audio="skip", output_dir="script")
    model, processor = tiny.tiny_model()
    LeafTrainer(model, [vowels], config, tiny.rows(5), tiny.rows(2), processor).train()

    config = SftConfig(**SHARED, max_steps=4, batch_size=2, max_new_tokens=3, lora_dropout=0.0, output_dir="sft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=1, lora_dropout=0.0, target_modules=config.lora_layers)
    policy = Policy.wrap(*tiny.tiny_model(), lora=lora)
    run = RunDirectory.begin(config)
    sft(config, policy, tiny.rows(5), tiny.rows(2), run)
    run.release()

    for name in ("rl", "script", "sft"):
        for path in [*Path(name).glob("checkpoints/*"), *(Path(name) / part for part in ("best", "last"))]:
            if path.name != "step-000002" and path.exists():
                shutil.rmtree(path)
        for file in ("projector.safetensors", ".lock"):
            (Path(name) / file).unlink(missing_ok=True)
    for path in Path().iterdir():
        if path.name not in ("rl", "script", "sft"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

"""What travels between processes of a rollout."""

import pickle
from typing import Any

import torch

from leaf import LeafConfig, LeafTrainer
from leaf.train.parts import gathered
from tests.helpers import tiny


class Travelling:
    """Pickles what a process sends, as a second one would get it."""

    alone = False

    def gather(self, value):
        return [pickle.loads(pickle.dumps(value))]

    def sum(self, values):
        return values


def test_embedded_prompts_and_their_kept_run_stay_in_their_process(tmp_path):
    config = LeafConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        prompts_per_rollout=2,
        num_completions=2,
        max_new_tokens=3,
        lora_dropout=0.0,
        token_budget=512,
        device="cpu",
    )
    model, processor = tiny.tiny_model()
    options: dict[str, Any] = {"processing_class": processor, "say": lambda line: None}
    rewards = [lambda completions, **columns: [float(len(text)) for text in completions]]
    trainer = LeafTrainer(model, args=config, reward_funcs=rewards, train_dataset=tiny.rows(2), **options)
    rollout = trainer.rollout(1)
    kept = [group.kept for group in rollout.groups]
    assert all(one is not None and one.sources for one in kept)
    processes: Any = Travelling()
    whole = gathered(rollout, processes)
    assert [(group.kept, group.prompt.length) for group in whole.groups] == [(None, 0)] * 2
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(whole.groups, rollout.groups, strict=True))
    assert [group.kept for group in rollout.groups] == kept  # the update of this process goes on from them

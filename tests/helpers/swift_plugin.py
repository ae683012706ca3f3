"""A plugin of ms-swift for tests/engines/test_swift.py: leaf's credit by the rule in LEAF_RULE, and what it computed.

Every process writes to LEAF_KEPT/RANK.pt what an independent computation of its advantages needs.
"""

import os
from pathlib import Path

import torch
from swift.rewards import ORM, orms  # pyright: ignore[reportMissingImports]

from leaf.engines.swift import LeafSwiftTrainer, use_leaf
from tests.engines.test_swift import letters

use_leaf(os.environ["LEAF_RULE"])
KEPT: list[dict] = []


class Letters(ORM):
    def __call__(self, completions, **columns):
        return [letters(text) for text in completions]


def _postprocess_batch(self, samples, batch_encoded_inputs, as_leaf_does=LeafSwiftTrainer._postprocess_batch):
    as_leaf_does(self, samples, batch_encoded_inputs)
    rest = iter(samples)
    for inputs in batch_encoded_inputs:
        batch, ids = inputs["grpo_batch"], inputs["model_inputs"]["input_ids"]
        width = batch.completion_mask.shape[1]
        plain = {k: v for k, v in inputs["model_inputs"].items() if k not in ("logits_to_keep", "use_cache")}
        with torch.no_grad():
            logits = self.model(**plain).logits[:, -width - 1 : -1].double() / self.temperature
        probabilities = logits.log_softmax(-1)
        log_probs = probabilities.gather(-1, ids[:, -width:, None])[..., 0]
        entropy = -(probabilities.exp() * probabilities).sum(-1)
        for row, mask in enumerate(batch.completion_mask.bool()):
            messages = next(rest).messages
            KEPT.append(
                {
                    "prompt": str(messages[:-1]),
                    "text": messages[-1]["content"],
                    "said": ids[row, -width:][mask].tolist(),
                    "log_probs": log_probs[row, mask].tolist(),
                    "entropy": entropy[row, mask].tolist(),
                    "advantages": batch.advantages[row, mask].tolist(),
                    "outside": float(batch.advantages[row, ~mask].abs().sum()),
                    "step": self.state.global_step,
                }
            )
    torch.save(KEPT, Path(os.environ["LEAF_KEPT"]) / f"{self.accelerator.process_index}.pt")


LeafSwiftTrainer._postprocess_batch = _postprocess_batch
orms["letters"] = Letters

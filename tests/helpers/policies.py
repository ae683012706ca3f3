"""What the adapters of a tiny policy are like, and groups that it samples."""

import torch

from leaf.model.sampling import sample
from tests.helpers import tiny

LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


def groups_of(policy, count=3, seed=0, **options):
    prompts = policy.embed(tiny.rows(count))
    generator = torch.Generator().manual_seed(seed)
    options = {"num_completions": 5, "max_new_tokens": 9, "temperature": 0.7, "generator": generator} | options
    return prompts, sample(policy, prompts, **options)

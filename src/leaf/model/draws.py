"""Make random generators that need no state to resume a run."""

import random

import torch


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Make the random generator of one step, a function of seed, step and stream."""
    generator = torch.Generator()
    # Python hashes a seed that is a string, so that no two triples share one, as sums of their numbers would.
    generator.manual_seed(random.Random(f"{seed}/{step}/{stream}").getrandbits(63))
    return generator

"""Make the random generators of a step."""

import random

import torch


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the random generator of one step: a function of seed, step and stream, so that resuming needs no state."""
    generator = torch.Generator()
    generator.manual_seed(random.Random(f"{seed}/{step}/{stream}").getrandbits(63))
    return generator

"""The faults that benchmarks/soak.py puts into a run: a plugin and a reward function of its recipe.

Which fault meets which step is a function of seed and step, so that the counts to expect are known beforehand and a
step that is done again after a kill meets the same fault again.
"""

import random
from typing import Any

import torch

from leaf.model.policy import Policy
from leaf.train.trainer import RLTrainer

# Share of steps that meet each fault.
RATES = {
    "reward raises": 0.02,
    "reward returns NaN": 0.02,
    "reward returns None": 0.02,
    "reward returns a string": 0.01,
    "reward returns one value too few": 0.01,
    "NaN in the loss": 0.015,
    "NaN in the gradient": 0.015,
}
# Share of the run. A shortage halves the token budget for good, and in batches as small as these it is then at its
# floor of 64 tokens, where another one ends the run with a message: so there is one.
OUT_OF_MEMORY_AT = (0.2,)

_now = {"step": 0, "fault": None, "memory": True}


def fault_of(seed, step, steps):
    """Return the fault of a step, or None."""
    if step in [round(share * steps) for share in OUT_OF_MEMORY_AT]:
        return "memory runs out"
    draw = random.Random(f"{seed}/fault/{step}").random()
    for fault, rate in RATES.items():
        draw -= rate
        if draw < 0:
            return fault
    return None


def vowels(completions, **columns):
    """Reward something that differs between random completions, unless this step's fault is the reward's."""
    values: list[Any] = [sum(letter in "aeiou" for letter in text) / 10 for text in completions]
    match _now["fault"]:
        case "reward raises":
            raise ConnectionError("the judge does not answer")
        case "reward returns NaN":
            values[0] = float("nan")
        case "reward returns None":
            values[0] = None
        case "reward returns a string":
            values[0] = "0.7"
        case "reward returns one value too few":
            values = values[1:]
    return values


def _install():
    rollout, read = RLTrainer.rollout, Policy.read

    def rollout_with_fault(self, step):
        _now.update(step=step, fault=fault_of(self.config.seed, step, self.length.steps), memory=False)
        return rollout(self, step)

    def read_with_fault(self, hidden, row, token):
        updating = torch.is_grad_enabled()
        if updating and _now["fault"] == "memory runs out" and not _now["memory"]:
            _now["memory"] = True
            torch.empty(2**46, dtype=torch.uint8)  # 64 TiB: the allocator itself refuses
        log_probs, entropies = read(self, hidden, row, token)
        if updating and _now["fault"] == "NaN in the loss":
            log_probs = log_probs * float("nan")
        if updating and _now["fault"] == "NaN in the gradient":
            log_probs.register_hook(lambda gradient: gradient * float("nan"))
        return log_probs, entropies

    RLTrainer.rollout, Policy.read = rollout_with_fault, read_with_fault


_install()

"""Find the token budget of a policy by measuring one small update. Memory is in bytes.

An update keeps what it needs for its backward pass, and that grows with the padded tokens of a forward. So one forward
and backward on a row of invented embeddings tells what a token takes, whatever the model, its kernels, adapters and
layout. Embeddings need not be real: what is kept depends on shapes alone (experts apart, to which tokens go unevenly).

What is measured is the growth of the peak: on CUDA of what tensors take, on the CPU of the resident memory of the
process, holes of the heap included.
"""

import ctypes
from dataclasses import dataclass

import psutil
import torch

from leaf.credit.tree import PrefixTree
from leaf.errors import RunError
from leaf.memory import available_bytes, peak_bytes, reset_peak, within_memory
from leaf.model.policy import Policy, Prompt
from leaf.model.scoring import largest_batch, score

SHARE = 0.8  # of the free memory that an update may fill; the rest is for what no measurement sees
# More is not worth the memory. On a CPU an update takes 8 % less with 1,024 or 2,048 tokens a forward than with 512.
# The sampler may then keep the prompts of a usual rollout (leaf.model.kept). On a GPU the number fills the device.
AUTOMATIC_BUDGET = {"cpu": 2048, "cuda": 32768}
# Tokens of the row that is measured, where rows may be as long: a second of the embedded model on one core.
MEASURED_ON = {"cpu": 128, "cuda": 2048}
# Where a process may not clear its resident mark (some sandboxes), what autograd saves stands for it. The process grew
# by 1.6 to 2.3 times that (benchmarks/step).
_UNSEEN = 2


@dataclass(frozen=True)
class Measured:
    """What an update of so many padded tokens took beside weights, gradients and moments, and what there was.

    Attributes:
        tokens: padded tokens of its forward.
        taken: growth of the peak during forward and backward.
        room: free memory, less the moments that the optimiser will take.
    """

    tokens: int
    taken: int
    room: int

    @property
    def per_token(self) -> float:
        """Bytes that a padded token takes."""
        return self.taken / self.tokens

    def budget(self, most: int) -> int:
        """Compute how many padded tokens fill `SHARE` of the room, at most so many.

        The number has three significant bits. Free memory is never the same twice, and runs should be.

        Raises:
            RunError: not one token fits.
        """
        fits = most if self.taken <= 0 else int(SHARE * self.room / self.per_token)
        if fits < 1:
            raise RunError(
                f"Beside the weights and the optimiser's moments {self.room / 1e9:.2f} GB of memory are free, and a "
                f"token of the update takes {self.per_token / 1e6:.2f} MB: not one fits into {SHARE:g} of that. Use "
                "dtype: bfloat16, a smaller lora_r or a larger device."
            )
        fits = min(fits, most)
        unit = 2 ** max(0, fits.bit_length() - 3)
        return fits // unit * unit


def measure_update(policy: Policy, prompt: int, behind: int) -> Measured:
    """Run one forward and backward of an update on a row, and measure what it takes.

    Where memory runs out, a row of half as many tokens is measured. Weights, gradients, random numbers and the policy's
    mode are afterwards what they were; its token budget is not.

    Args:
        policy: with an adapter to train.
        prompt, behind: the most tokens to expect of a prompt, and of completions behind it where they share nothing.
            The row has this proportion, for logits are computed behind the prompt only.

    Raises:
        RunError: not even a few tokens fit.
    """
    available_bytes(policy.device)  # refuses devices whose memory cannot be read
    longest = prompt + behind
    policy.token_budget = min(longest, MEASURED_ON[policy.device.type])
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in trained]
    was_training = policy.training
    policy.train()

    def measured() -> Measured:
        for parameter in trained:  # they stay from one update to the next, so they are no part of what a token takes
            parameter.grad = torch.empty_like(parameter).zero_()
        completion = max(1, round(policy.token_budget * behind / longest / 2))
        # The first update lets kernels set up what they keep, and reads weights that were only mapped into memory.
        _measure(policy, 8, 4)
        return _measure(policy, max(1, policy.token_budget - 2 * completion), completion)

    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        try:
            return within_memory(policy, measured, smallest=16)
        finally:
            for parameter, gradient in zip(trained, before, strict=True):
                parameter.grad = gradient
            policy.train(was_training)


def _measure(policy: Policy, length: int, completion: int) -> Measured:
    """Measure an update of a prompt of so many tokens with two completions that share nothing."""
    device = policy.device
    vocabulary = policy.text_config.vocab_size
    with torch.no_grad():
        embeddings = policy.embed_tokens(torch.arange(length, device=device) % vocabulary)
    prompt = Prompt(embeddings, torch.zeros(length, dtype=torch.bool, device=device))
    # The last token of a completion is predicted and not fed.
    tokens = torch.arange(2 * (completion + 1)).view(2, -1) % vocabulary
    tree = PrefixTree.build(tokens, torch.full((2,), completion + 1))
    moments = sum(2 * parameter.numel() * 4 for parameter in policy.parameters() if parameter.requires_grad)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    room = available_bytes(device) - moments
    start = _held(device)
    cleared = reset_peak(device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = score(policy, [prompt], [tree]).log_probs[0].mean()
    loss.backward()
    for parameter in policy.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    taken = peak_bytes(device) - start if cleared else _UNSEEN * sum(saved.values())
    return Measured(largest_batch(policy, [prompt], [tree]), taken, room)


def _held(device: torch.device) -> int:
    """Measure what is held now: tensors on CUDA; on the CPU the process, once its heap has given back what it can."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    # Freed memory that the heap keeps would hide what the update takes. Only glibc has this function.
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    return psutil.Process().memory_info().rss

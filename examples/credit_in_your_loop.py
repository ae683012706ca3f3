"""Use LEAF's credit in your own training loop: any model that samples tokens, plain PyTorch, no speech.

    python examples/credit_in_your_loop.py

A small recurrent network learns to spell. Each of four prompts asks for one word, and a completion earns the share of
its letters that are in the right place. The script runs in seconds and checks its own result.
"""

import argparse

import torch
from torch import Tensor, nn

from leaf import grpo_advantages, leaf_advantages
from leaf.credit import policy_loss, token_weights

WORDS = ["leaf", "tree", "branch", "twig"]
LETTERS = sorted(set("".join(WORDS)))
END = len(LETTERS)  # the end-of-sequence token
LONGEST = 8


class Speller(nn.Module):
    """Predicts the next letter from the prompt and the letters so far."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.start = nn.Embedding(len(WORDS), width)
        self.letter = nn.Embedding(len(LETTERS) + 1, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, len(LETTERS) + 1)

    def log_probs(self, prompt: int, tokens: Tensor) -> Tensor:
        """Compute log-probabilities (K, T) of given tokens, with a graph."""
        state = self.start.weight[prompt].expand(tokens.shape[0], -1)
        steps = []
        for t in range(tokens.shape[1]):
            steps.append(self.head(state).log_softmax(-1).gather(1, tokens[:, t : t + 1]))
            state = self.cell(self.letter(tokens[:, t]), state)
        return torch.cat(steps, 1)

    @torch.no_grad()
    def sample(self, prompt: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample tokens (K, T), their lengths (K,) with the end token counted, and their surprisal (K, T) in nats."""
        state = self.start.weight[prompt].expand(count, -1)
        tokens = torch.zeros(count, LONGEST, dtype=torch.long)
        surprisal = torch.zeros(count, LONGEST)
        lengths = torch.full((count,), LONGEST)
        for t in range(LONGEST):
            logp = self.head(state).log_softmax(-1)
            tokens[:, t] = torch.multinomial(logp.exp(), 1).squeeze(1)
            surprisal[:, t] = -logp.gather(1, tokens[:, t : t + 1]).squeeze(1)
            lengths = torch.where((tokens[:, t] == END) & (lengths == LONGEST), t + 1, lengths)
            state = self.cell(self.letter(tokens[:, t]), state)
        return tokens, lengths, surprisal  # whatever follows a completion's end is ignored everywhere


def reward(prompt: int, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Compute the share of letters in the right place (K,), the end included.

    The share is of the longer of word and completion, so a wrong length costs reward.
    """
    wanted = [*map(LETTERS.index, WORDS[prompt]), END]
    earned = []
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        right = sum(a == b for a, b in zip(row[:length], wanted, strict=False))
        earned.append(right / max(length, len(wanted)))
    return torch.tensor(earned)


def train(credit: str, steps: int, seed: int, completions: int = 8) -> list[float]:
    """Train a fresh model with a credit rule, and return the mean reward of every step."""
    torch.manual_seed(seed)
    model = Speller()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        loss, earned = torch.zeros(()), []
        for prompt in range(len(WORDS)):
            tokens, lengths, surprisal = model.sample(prompt, completions)
            rewards = reward(prompt, tokens, lengths)
            if credit == "leaf":  # one advantage per token, (K, T): tokens of one span share theirs
                advantages = leaf_advantages(tokens, lengths, surprisal, rewards)
            else:  # one advantage per completion, repeated over its tokens and padded to T
                advantages = nn.functional.pad(grpo_advantages(rewards, lengths), (0, LONGEST - int(lengths.max())))
            mask = torch.arange(LONGEST) < lengths[:, None]
            new = model.log_probs(prompt, tokens)
            (weights,) = token_weights([mask])  # every completion counts the same, whatever its length
            # There is one update a rollout, so the policy that sampled is this one: old and new are the same.
            part, _ = policy_loss(new, new.detach(), advantages, mask, weights=weights)
            loss = loss + part / len(WORDS)
            earned.append(float(rewards.mean()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(sum(earned) / len(earned))
    return history


def main() -> None:
    """Train with LEAF's credit and with GRPO's, and check that both learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    for credit in ("leaf", "grpo"):
        history = train(credit, options.steps, options.seed)
        tenth = max(options.steps // 10, 1)
        first, last = sum(history[:tenth]) / tenth, sum(history[-tenth:]) / tenth
        print(f"{credit}: mean reward {first:.3f} in the first tenth of the steps, {last:.3f} in the last")
        if last < first + 0.3:
            raise SystemExit(f"{credit} should gain at least 0.3 in {options.steps} steps; something is broken")


if __name__ == "__main__":
    main()

"""Draw distinct translations for all seeds of the game at once: stochastic beam search, see leaf.model.distinct.

Letters: S seeds, P prompts of each, K slots of a prompt in which beams live, T tokens. Every slot is a row of the
decoder, so that all seeds go side by side; a slot that is empty has log-probability −inf. The Gumbel keys of children
and the weights of a set are the library's.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.credit_lab.arms import Groups
from benchmarks.credit_lab.language import END, MOST, START, rewards
from benchmarks.credit_lab.policies import Policies, serve
from leaf.credit import SetDraw
from leaf.model.children import Children, gumbel, noise_width

_NOTHING = -math.inf


@dataclass
class _Beams:
    key: Tensor  # (S, P, K) perturbed log-probability, float64
    log_prob: Tensor  # (S, P, K) float64
    ended: Tensor  # (S, P, K)
    length: Tensor  # (S, P, K)
    rest: Tensor  # (S, P) log of the probability of all that has fallen out
    threshold: Tensor  # (S, P) the greatest key that has fallen out
    tokens: Tensor  # (S, P, K, T)
    logp: Tensor  # (S, P, K, T) of every token
    entropy: Tensor  # (S, P, K, T)

    @property
    def live(self) -> Tensor:
        return ~self.ended & (self.log_prob > _NOTHING)


@torch.no_grad()
def distinct(
    policies: Policies, source: Tensor, target: Tensor, count: int, draws: torch.Generator, most: int = MOST
) -> Groups:
    """Draw K distinct completions of at most `most` tokens for every prompt (S, P, 7)."""
    shape = (source.shape[0], source.shape[1], count)
    h, *memory = serve(policies.encode(source), count, None)
    beams, last, decoded = _roots(shape, draws), torch.full((shape[0], shape[1] * count), START), 0
    for _ in range(most):
        logp, h = policies.step(last, h, memory)
        decoded += int(beams.live.sum())
        parent = _grow(beams, logp.view(*shape, -1), draws)
        rows = (torch.arange(shape[1])[:, None] * count + parent).flatten(1)
        h, last = h.gather(1, rows[..., None].expand_as(h)), beams.tokens[..., -1].flatten(1)
        if bool(beams.ended.all()):
            break
    reward = rewards(beams.tokens, target[:, :, None].expand(*shape, -1))
    each = zip(beams.log_prob.flatten(0, 1), beams.rest.flatten(), beams.threshold.flatten(), strict=True)
    sets = [SetDraw(*one) for one in each]
    drawn = (beams.tokens, beams.length, beams.logp, beams.entropy, reward, sets)
    return Groups(source, *drawn, decoded=shape[1] * count, decoded_tokens=decoded / shape[0])


def _roots(shape: tuple[int, int, int], draws: torch.Generator) -> _Beams:
    """Begin every prompt with the empty translation in slot 0."""
    log_prob = torch.full(shape, _NOTHING, dtype=torch.float64)
    log_prob[..., 0] = 0.0
    key = torch.where(log_prob == 0, gumbel(shape, draws), _NOTHING)
    rest, nothing = torch.full(shape[:2], _NOTHING, dtype=torch.float64), torch.zeros(shape, dtype=torch.long)
    tokens, logp, entropy = (torch.zeros(*shape, 0, dtype=kind) for kind in (torch.long, torch.float, torch.float))
    return _Beams(key, log_prob, nothing.bool(), nothing, rest, rest.clone(), tokens, logp, entropy)


def _grow(beams: _Beams, logp: Tensor, draws: torch.Generator) -> Tensor:
    """Let every live beam have children (S, P, K, V), keep the K greatest, and return the slots of their parents."""
    shape, count = beams.key.shape, beams.key.shape[2]
    keys, log_probs, words, lost, beaten = _children(beams, logp, draws)
    best = keys.flatten(2).topk(count, -1).indices
    parent = best // keys.shape[3]
    out = torch.ones_like(keys, dtype=torch.bool).flatten(2).scatter_(-1, best, False)
    left = [log_probs.flatten(2).masked_fill(~out, _NOTHING), lost, beams.rest[..., None]]
    beams.rest = torch.cat(left, -1).logsumexp(-1)
    left = [keys.flatten(2).masked_fill(~out, _NOTHING), beaten, beams.threshold[..., None]]
    beams.threshold = torch.cat(left, -1).amax(-1)

    ended, before = beams.ended.gather(-1, parent), beams.log_prob.gather(-1, parent)
    beams.key, beams.log_prob = (each.flatten(2).gather(-1, best) for each in (keys, log_probs))
    beams.length = beams.length.gather(-1, parent) + ~ended
    word = words.flatten(2).gather(-1, best).masked_fill(ended, END)
    spread = -(logp.exp() * logp).sum(-1).gather(-1, parent)
    follow = parent[..., None].expand(*shape, beams.tokens.shape[-1])
    for name, new in {"tokens": word, "logp": (beams.log_prob - before).float(), "entropy": spread}.items():
        setattr(beams, name, torch.cat([getattr(beams, name).gather(2, follow), new[..., None]], -1))
    beams.ended = ended | (word == END)
    return parent


def _children(beams: _Beams, logp: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw the C greatest children of every beam: keys, log-probabilities and words (S, P, K, C), and what is left.

    What is left is the log-probability of all other children (S, P, K), and the greatest key among them. A beam that
    has ended is its own only child.
    """
    live, shape = beams.live, beams.key.shape
    noise = gumbel((int(live.sum()), noise_width(logp.shape[-1], shape[2])), draws)
    found = Children.of(logp[live], beams.log_prob[live], beams.key[live], noise, shape[2])

    def slots(values: Tensor, fill: float) -> Tensor:
        every = torch.full((*shape, *values.shape[1:]), fill, dtype=values.dtype)
        every[live] = values
        return every

    keys, log_probs = slots(found.key, _NOTHING), slots(found.log_prob, _NOTHING)
    keys[..., 0] = torch.where(beams.ended, beams.key, keys[..., 0])
    log_probs[..., 0] = torch.where(beams.ended, beams.log_prob, log_probs[..., 0])
    left = (slots(found.log_rest, _NOTHING), slots(found.threshold, _NOTHING))
    return keys, log_probs, slots(found.token, END), *left

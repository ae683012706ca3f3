"""Sample K distinct completions per prompt, without replacement: stochastic beam search on the policy's own decoder.

Every beam carries its log-probability φ and a perturbed one, G = φ + Gumbel noise. The K completions with the greatest
G of all are exactly a sample without replacement (the Gumbel-top-k trick). They can be found without a look at all
completions, because the G of a prefix is the greatest G among the completions that it begins: children draw their G
given that the greatest of them equals the parent's. So a prefix that falls out of the K greatest begins no completion
that belongs in. Source: Kool, van Hoof and Welling 2019, arXiv 1903.06059, algorithm 1 and appendix B.

What falls out is not lost: its probability and its greatest G are exactly those of the completions outside of the set,
which the estimators ask for (leaf.credit.sets). Letters: P prompts, K slots of a prompt, V vocabulary, T tokens, L live
beams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leaf.credit.sets import SetDraw
from leaf.model.attention import refuse_long
from leaf.model.below import Entry, Trail
from leaf.model.children import Children, gumbel, noise_width
from leaf.model.decoding import decoder
from leaf.model.kept import KeptPrompt
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import Group, in_batches, keeper

_NOTHING = -math.inf


@dataclass
class _Beams:
    """The beams of P prompts in K slots each; an empty slot has log-probability −inf.

    Live beams are the decoder's rows, in order of prompt and slot.
    """

    log_prob: Tensor  # (P, K) φ, float64
    key: Tensor  # (P, K) G, float64
    ended: Tensor  # (P, K) True where the completion has its end-of-sequence token
    tokens: Tensor  # (P, K, T)
    surprisal: Tensor  # (P, K, T)
    lengths: Tensor  # (P, K)
    log_rest: Tensor  # (P,) log-probability of all that has fallen out
    threshold: Tensor  # (P,) the greatest G that has fallen out
    decoded: Tensor  # (P,) tokens that beams were given, those of beams that have fallen out among them
    broken: Tensor  # (P,) whether a beam had logits that are not finite

    @property
    def live(self) -> Tensor:
        return ~self.ended & (self.log_prob > _NOTHING)


@torch.no_grad()
def sample_distinct(
    policy: Policy,
    prompts: Sequence[Prompt],
    generators: Sequence[torch.Generator],
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    token_budget: int | None = None,
    keep_prompts: bool = False,
    keep_entries: bool = False,
) -> list[Group]:
    """Sample up to `num_completions` (K) distinct completions per prompt, dropout off.

    A completion that reaches the length limit is an outcome like others, with the probability of what was decoded. A
    group has fewer than K completions where the policy has fewer. Where the logits of a beam are not finite, nothing is
    known of the probability of the set, so all of its surprisals are NaN.

    Args:
        policy, prompts, num_completions, max_new_tokens, temperature, token_budget, keep_prompts, keep_entries: as in
            `leaf.model.sampling.sample`.
        generators: sources of randomness on the CPU, one for each prompt. What a prompt draws depends on its own alone.

    Returns:
        One Group per prompt with its `draw`, completions in the order in which they were drawn, tensors on the CPU.

    Raises:
        RunError: memory does not suffice for the completions of one prompt.
    """
    refuse_long(policy.text_config, [(prompt.length, max_new_tokens) for prompt in prompts])
    limits = {"num_completions": num_completions, "max_new_tokens": max_new_tokens, "temperature": temperature}
    # Where memory runs out a part is drawn again, from the same state of its generators.
    states = [generator.get_state() for generator in generators]
    kept = keeper(policy, prompts, keep_prompts=keep_prompts, keep_entries=keep_entries)

    def draw(part: Sequence[int]) -> list[Group]:
        def attempt(keep: bool, first: int) -> list[Group]:
            for i in part:
                generators[i].set_state(states[i])
            its = ([prompts[i] for i in part], [generators[i] for i in part])
            return _sample(policy, *its, **limits, first=first, keep=keep)

        return kept(attempt)

    behind = num_completions * max_new_tokens
    return in_batches(policy, prompts, draw, behind_prompt=behind, token_budget=token_budget)


def _sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    generators: Sequence[torch.Generator],
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float,
    first: int,
    keep: bool,
) -> list[Group]:
    """Sample one batch of prompts; `first` and `keep` say what its groups keep (leaf.model.sampling)."""
    eos = torch.tensor(policy.eos_token_ids, device=prompts[0].embeddings.device)
    scale = policy.temperature / temperature  # the decoder's logits are divided by the policy's own temperature
    beams = _roots(prompts, generators, num_completions, max_new_tokens)
    decode = decoder(policy, prompts, keep=keep, first=first)
    trail = Trail(beams.key.numel(), max_new_tokens, eos.device)
    logits = decode.start().mul_(scale)
    for step in range(max_new_tokens):
        origin, parent, token = _grow(beams, logits, generators, step)
        trail.follow(origin.flatten())
        slot = beams.live.nonzero(as_tuple=True)  # of the new beams; none of them has been held against eos yet
        beams.ended[slot] = torch.isin(token, eos)
        going = ~torch.isin(token, eos)
        if step + 1 == max_new_tokens or not bool(going.any()):
            break
        rows = torch.arange(int(going.sum()), device=eos.device)
        trail.add(beams.live.flatten().nonzero().squeeze(1), step, rows, len(rows))
        logits = decode.advance(parent[going], token[going]).mul_(scale)
    entries = trail.entries(decode.entered, len(prompts)) or [Entry() for _ in prompts]
    kept = decode.kept or [None] * len(prompts)
    return [_group(prompt, beams, i, kept[i], entries[i]) for i, prompt in enumerate(prompts)]


def _roots(prompts: Sequence[Prompt], generators: Sequence[torch.Generator], slots: int, limit: int) -> _Beams:
    """Begin every prompt with the empty completion in slot 0, whose G is a Gumbel of its own."""
    device = prompts[0].embeddings.device
    count = len(prompts)
    nothing = torch.full((count, slots), _NOTHING, dtype=torch.float64, device=device)
    log_prob, key = nothing.clone(), nothing.clone()
    log_prob[:, 0] = 0.0
    key[:, 0] = torch.cat([gumbel((1,), one) for one in generators]).to(device)
    return _Beams(
        log_prob,
        key,
        torch.zeros(count, slots, dtype=torch.bool, device=device),
        torch.zeros(count, slots, limit, dtype=torch.long, device=device),
        torch.zeros(count, slots, limit, device=device),
        torch.zeros(count, slots, dtype=torch.long, device=device),
        nothing[:, 0].clone(),
        nothing[:, 0].clone(),
        torch.zeros(count, dtype=torch.long, device=device),
        torch.zeros(count, dtype=torch.bool, device=device),
    )


def _grow(
    beams: _Beams, logits: Tensor, generators: Sequence[torch.Generator], step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Let every live beam (L, V) have children and keep the K greatest of each prompt, ended completions among them.

    Returns:
        For every slot (P, K) the slot its beam comes from, counted over all prompts; and for every beam that is now
        live, in order of prompt and slot, the decoder's row of its parent, and its token.
    """
    live, slots = beams.live, beams.key.shape[1]
    prompt, slot = live.nonzero(as_tuple=True)
    odd = ~logits.amax(1).isfinite()  # NaN or +inf somewhere, or -inf everywhere; a token may be excluded by -inf
    beams.broken.index_fill_(0, prompt[odd], True)
    logits[odd] = 0.0  # so that other prompts draw as they would have
    children = Children.of(logits, beams.log_prob[live], beams.key[live], _noise(live, logits, generators), slots)
    kept = children.key.shape[1]

    # Candidates of a prompt: the children of its live beams, and its ended completions as the only child of themselves.
    key = torch.full((*live.shape, kept), _NOTHING, dtype=torch.float64, device=logits.device)
    log_prob, token = torch.full_like(key, _NOTHING), torch.zeros_like(key, dtype=torch.long)
    key[prompt, slot], log_prob[prompt, slot], token[prompt, slot] = children.key, children.log_prob, children.token
    key[..., 0] = torch.where(beams.ended, beams.key, key[..., 0])
    log_prob[..., 0] = torch.where(beams.ended, beams.log_prob, log_prob[..., 0])

    key, log_prob, token = key.flatten(1), log_prob.flatten(1), token.flatten(1)
    # In order of slot, because the decoder wants its rows ascending by parent.
    best = key.topk(slots, dim=1).indices.sort(dim=1).values
    chosen = torch.zeros_like(key, dtype=torch.bool).scatter_(1, best, True)
    _drop(beams, key, log_prob, chosen, children, (prompt, slot))

    row = torch.zeros_like(beams.lengths)
    row[prompt, slot] = torch.arange(len(prompt), device=logits.device)
    parent = best // kept
    was_ended = beams.ended.gather(1, parent)
    before = beams.log_prob.gather(1, parent)
    beams.key, beams.log_prob = key.gather(1, best), log_prob.gather(1, best)
    new_token = token.gather(1, best)
    spread = parent[..., None].expand_as(beams.tokens)
    beams.tokens, beams.surprisal = beams.tokens.gather(1, spread), beams.surprisal.gather(1, spread)
    beams.lengths, beams.ended = beams.lengths.gather(1, parent), was_ended
    new = beams.live
    beams.tokens[..., step] = torch.where(new, new_token, beams.tokens[..., step])
    nats = (before - beams.log_prob).clamp_min(0.0).to(beams.surprisal.dtype)
    beams.surprisal[..., step] = torch.where(new, nats, beams.surprisal[..., step])
    beams.lengths = beams.lengths + new.long()
    beams.decoded = beams.decoded + new.sum(1)
    origin = parent + slots * torch.arange(len(parent), device=parent.device)[:, None]
    return origin, row.gather(1, parent)[new], new_token[new]


def _drop(
    beams: _Beams, key: Tensor, log_prob: Tensor, chosen: Tensor, children: Children, of: tuple[Tensor, Tensor]
) -> None:
    """Add up what falls out in this step: candidates that are not chosen, and children that were no candidates.

    The children are those of live beams, whose prompts and slots are `of`.
    """
    lost = log_prob.masked_fill(chosen, _NOTHING).logsumexp(1)
    beams.log_rest = torch.logaddexp(beams.log_rest, lost)
    beams.threshold = torch.maximum(beams.threshold, key.masked_fill(chosen, _NOTHING).amax(1))
    beams.threshold.scatter_reduce_(0, of[0], children.threshold, "amax")
    rest = torch.full_like(beams.key, _NOTHING)
    rest[of] = children.log_rest
    beams.log_rest = torch.logaddexp(beams.log_rest, rest.logsumexp(1))


def _noise(live: Tensor, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the Gumbels of all children; a prompt's come from its own generator, in order of its live beams."""
    counts, width = live.sum(1).tolist(), noise_width(logits.shape[1], live.shape[1])
    drawn = [gumbel((n, width), one) for n, one in zip(counts, generators, strict=True) if n]
    return torch.cat(drawn).to(logits.device)


def _group(prompt: Prompt, beams: _Beams, i: int, kept: KeptPrompt | None, entry: Entry) -> Group:
    """Take out one prompt's completions, in the order in which they were drawn: descending G."""
    order = beams.key[i].argsort(descending=True)
    order = order[beams.log_prob[i, order] > _NOTHING]
    lengths = beams.lengths[i, order].cpu()
    width = int(lengths.max())
    draw = SetDraw(beams.log_prob[i, order].cpu(), beams.log_rest[i].cpu(), beams.threshold[i].cpu())
    return Group(
        prompt,
        beams.tokens[i, order, :width].cpu(),
        lengths,
        beams.surprisal[i, order, :width].masked_fill(beams.broken[i], math.nan).cpu(),
        ~beams.ended[i, order].cpu(),
        draw,
        beams=int(beams.decoded[i]),
        kept=kept,
        entry=entry.select(order.tolist()),
    )

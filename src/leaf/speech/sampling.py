"""Sample a group of completions per prompt: prefill each prompt once, expand its cache, decode.

Finished completions leave the batch. The surprisal of each sampled token is read as it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache

from leaf.credit.tree import PrefixTree
from leaf.speech.policy import Policy, Prompt

# A nucleus almost never holds more tokens than this; where one does, the whole row is sorted.
_NUCLEUS = 256


@dataclass(frozen=True)
class Group:
    """Hold the K completions of one prompt.

    Attributes:
        prompt: the embedded prompt they continue.
        tokens: (K, T) int64, right-padded with 0; the end-of-sequence token counts as the last one.
        lengths: (K,) int64.
        surprisal: (K, T) −log p in nats under the distribution sampled from (after temperature and top-p); padding 0.
        truncated: (K,) True where the length limit came before an end-of-sequence token.
    """

    prompt: Prompt
    tokens: Tensor
    lengths: Tensor
    surprisal: Tensor
    truncated: Tensor

    @cached_property
    def tree(self) -> PrefixTree:
        """Return the prefix tree, built once; it serves credit, the packed forward and the report."""
        return PrefixTree.build(self.tokens, self.lengths)

    def select(self, indices: list[int]) -> "Group":
        """Return the group of some of its completions, width unchanged."""
        parts = (self.tokens, self.lengths, self.surprisal, self.truncated)
        return Group(self.prompt, *(part[indices] for part in parts))

    def texts(self, tokenizer) -> list[str]:
        """Decode the completions without special tokens."""
        rows = [row[:length].tolist() for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    generator: torch.Generator | None = None,
) -> list[Group]:
    """Sample `num_completions` (K) completions per prompt, dropout off.

    Args:
        policy: the model; its adapter is used as it stands (wrap in `policy.reference()` for the base model).
        prompts: embedded prompts of any lengths.
        num_completions: K ≥ 1.
        max_new_tokens: length limit T ≥ 1; completions that reach it without an end token are marked truncated.
        temperature: in (0, inf), divides the logits; independent of `policy.temperature`.
        top_p: in (0, 1]; the smallest set of most likely tokens whose probability reaches it is kept.
        greedy: take the most likely token instead; the surprisal is then the unwarped one.
        generator: source of randomness on the CPU; one uniform number per completion and step is drawn, whether or not
            the completion has ended, so a draw never depends on how the batch was compacted.

    Returns:
        One Group per prompt, tensors on the CPU.
    """
    was_training = policy.training
    policy.eval()
    try:
        return _sample(policy, prompts, num_completions, max_new_tokens, temperature, top_p, greedy, generator)
    finally:
        policy.train(was_training)


def _sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    num_completions: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    greedy: bool,
    generator: torch.Generator | None,
) -> list[Group]:
    device = prompts[0].embeddings.device
    longest = max(prompt.length for prompt in prompts)
    rows = len(prompts) * num_completions
    eos = torch.tensor(policy.eos_token_ids, device=device)
    scale = policy.temperature / temperature  # policy.logits already divides by the policy's own temperature

    # Prefill: each prompt once, left-padded so that all continue at the same cache index.
    embeddings = torch.stack([torch.nn.functional.pad(p.embeddings, (0, 0, longest - p.length, 0)) for p in prompts])
    mask = torch.tensor([[0] * (longest - p.length) + [1] * p.length for p in prompts], device=device)
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=policy.text_config)
    hidden = policy.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    logits = policy.logits(hidden).repeat_interleave(num_completions, 0)
    cache.batch_repeat_interleave(num_completions)
    mask = mask.repeat_interleave(num_completions, 0)
    position = position[:, -1].repeat_interleave(num_completions, 0)

    tokens = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
    surprisal = torch.zeros(rows, max_new_tokens, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    truncated = torch.ones(rows, dtype=torch.bool, device=device)
    active = torch.arange(rows, device=device)  # row of each sequence that is still in the batch
    for step in range(max_new_tokens):
        draws = torch.rand(rows, generator=generator, dtype=torch.float64).to(device)[active]
        chosen, nats = _choose(logits * scale, top_p, greedy, draws)
        tokens[active, step], surprisal[active, step], lengths[active] = chosen, nats, step + 1
        ended = torch.isin(chosen, eos)
        truncated[active[ended]] = False
        if step + 1 == max_new_tokens or bool(ended.all()):
            break
        if bool(ended.any()):
            keep = (~ended).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            active, chosen, mask, position = active[keep], chosen[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
        position = position + 1
        hidden = policy.language_model(
            inputs_embeds=policy.base.get_input_embeddings()(chosen[:, None]).to(embeddings.dtype),
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits = policy.logits(hidden)

    groups = []
    for i, prompt in enumerate(prompts):
        mine = slice(i * num_completions, (i + 1) * num_completions)
        width = int(lengths[mine].max())
        parts = (tokens[mine, :width], lengths[mine], surprisal[mine, :width], truncated[mine])
        groups.append(Group(prompt, *(part.cpu() for part in parts)))
    return groups


def _choose(logits: Tensor, top_p: float, greedy: bool, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row of logits (R, V) by inverse CDF; return tokens (R,) and their surprisal (R,) in nats."""
    if greedy:
        best = logits.max(-1)
        return best.indices, logits.logsumexp(-1) - best.values
    if top_p >= 1.0:
        cumulative = logits.double().softmax(-1).cumsum(-1)
        index = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True).squeeze(1)
        index = index.clamp_max(logits.shape[-1] - 1)
        return index, logits.logsumexp(-1) - logits.gather(-1, index[:, None]).squeeze(1)
    normaliser = logits.logsumexp(-1, keepdim=True)
    top = logits.topk(min(_NUCLEUS, logits.shape[-1]), dim=-1)
    probability = (top.values - normaliser).double().exp()
    if float(probability.sum(-1).min()) < top_p:
        top = logits.sort(dim=-1, descending=True)
        probability = (top.values - normaliser).double().exp()
    before = probability.cumsum(-1) - probability
    probability = probability.masked_fill(before >= top_p, 0.0)
    cumulative = probability.cumsum(-1)
    mass = cumulative[:, -1]
    index = torch.searchsorted(cumulative, (draws * mass)[:, None], right=True)
    index = torch.minimum(index, (probability > 0).sum(-1, keepdim=True) - 1)  # a draw next to 1 stays in the nucleus
    nats = mass.log() - probability.gather(-1, index).squeeze(1).log()
    return top.indices.gather(-1, index).squeeze(1), nats.float()

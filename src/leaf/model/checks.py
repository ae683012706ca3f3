"""Check a policy at start-up, and refuse to train where it is wrong.

Prompts, scorer and sampler have to agree with the model's own forward, and the audio has to move the completions.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor

from leaf.credit.tree import PrefixTree
from leaf.data.audio import load_audio
from leaf.data.recordings import audio_of, with_audio
from leaf.errors import ModelError
from leaf.model.below import Room, layers_below, usable
from leaf.model.declared import check_declared, stated_scale
from leaf.model.lora import check_frozen
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import Group, sample
from leaf.model.scoring import layout_for, score

# Largest mean difference in log-probability (nats per token) between the packed and the plain forward.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# Replacing the recording by noise has to move log-probabilities by at least this many nats per token on average.
AUDIO_EFFECT = 1e-3


@torch.no_grad()
def check_policy(policy: Policy, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Check a policy on real rows and write lines that say what is trained and what was checked.

    Raises:
        ModelError: prompts, scorer or sampler differ from the stock model, or the audio does not move the completions.
    """
    check_model(policy, rows)
    if isinstance(policy.model, peft.PeftModel):
        check_frozen(policy)
    lines = [_trained(policy)]
    if policy.family.note:
        lines.append(policy.family.note)
    prompts = policy.embed(rows)
    groups = sample(
        policy,
        prompts,
        num_completions=4,
        max_new_tokens=12,
        temperature=policy.temperature,
        generator=torch.Generator().manual_seed(0),
        keep_entries=True,
    )
    scores, line = _check_log_probs(policy, groups)
    lines += [line, *_check_below(policy, groups, scores)]
    # On the reference: a policy may learn to do without the audio, and its run has to resume all the same.
    trees = [group.tree for group in groups]
    with policy.reference() if isinstance(policy.model, peft.PeftModel) else nullcontext():
        reference = score(policy, prompts, trees).log_probs
        moved = audio_effect(policy, rows, trees, reference)
    if not moved >= AUDIO_EFFECT:
        raise ModelError(
            f"Replacing the audio by noise moves the log-probabilities by only {moved:.2g} nats per token: the audio "
            "does not reach the model. Check the prompt's audio placeholder and the projector's weights."
        )
    away = _mean([a - b for a, b in zip(scores, reference, strict=True)], trees)
    if away > TOLERANCE[policy.base.dtype]:
        lines[0] += f"; the policy starts {away:.2g} nats per token from its reference, so its adapter is not fresh"
    lines.append(f"audio reaches the model: noise in its place moves log-probabilities by {moved:.2f} nats per token")
    return lines


def check_model(policy: Policy, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check on real rows that a family describes its model: what every stage needs, stage align too.

    Raises:
        ModelError: a field of the family is wrong, or prompts differ from the stock model.
    """
    policy.eval()
    check_declared(policy, rows)
    _refuse(
        stock_difference(policy, rows[0]),
        TOLERANCE[policy.base.dtype],
        "The model's own forward and the prompt as this library embeds it",
        f"The family {policy.family.model_type!r} does not describe this checkpoint: check its paths.",
    )


def _trained(policy: Policy) -> str:
    """Say what is trained and what is frozen."""
    counts = policy.describe()
    return (
        f"trainable {counts['trainable']:,} of {counts['total']:,} parameters: the adapter on the language model "
        f"({counts['language_model']:,}); frozen: audio tower ({counts['audio_tower']:,}), "
        f"projector ({counts['projector']:,}); {str(policy.base.dtype).removeprefix('torch.')}"
    )


def _check_log_probs(policy: Policy, groups: Sequence[Group]) -> tuple[list[Tensor], str]:
    """Compare what scorer and sampler say of completions with plain copies; give log-probabilities and a line."""
    allowed, layout = TOLERANCE[policy.base.dtype], layout_for(policy).name
    scores = score(policy, [group.prompt for group in groups], [group.tree for group in groups]).log_probs
    plain = [plain_log_probs(policy, g.prompt, g.tokens, g.lengths) for g in groups]
    scored = max(_difference(a, b, g.lengths) for a, b, g in zip(scores, plain, groups, strict=True))
    _refuse(
        scored,
        allowed,
        f"The scorer (layout {layout}) and plain copies",
        "This model's attention does not honour the tree mask, so training on it would be wrong; "
        "layout='copies' is slower and always right.",
    )
    drawn = max(_difference(g.surprisal.to(b.device), -b, g.lengths) for b, g in zip(plain, groups, strict=True))
    _refuse(drawn, allowed, "The sampler and plain copies", "This model's cache does not work as the sampler expects.")
    return scores, (
        f"packed forward (layout {layout}) equals plain copies: {scored:.1e} nats per token, "
        f"sampler {drawn:.1e} (allowed {allowed:g})"
    )


def _check_below(policy: Policy, groups: Sequence[Group], wanted: Sequence[Tensor]) -> list[str]:
    """Let layers below the adapter run once only if log-probabilities stay what they are, and give a line on them."""
    first = layers_below(policy)
    if first == 0:
        return []
    prompts, trees, entries = zip(*((group.prompt, group.tree, group.entry) for group in groups), strict=True)
    if usable(entries) is None:  # the sampler has left none
        score(policy, prompts, trees, entries=entries)
    found = score(policy, prompts, trees, entries=usable(entries)).log_probs
    apart = max(_difference(a, b, g.lengths) for a, b, g in zip(found, wanted, groups, strict=True))
    policy.shares_below = usable(entries) is not None and apart <= TOLERANCE[policy.base.dtype]
    if policy.shares_below:
        return [f"layers below the first adapted one ({first}) run once per rollout: {apart:.1e} nats per token apart"]
    why = "they pass on more than hidden states"
    if any(Room(policy, first).left < group.prompt.length + group.tokens_decoded for group in groups):
        why = f"what enters the layer does not fit the token budget ({policy.token_budget})"
    return [f"layers below the first adapted one ({first}) run in every forward: {why}"]


def _difference(a: Tensor, b: Tensor, lengths: Tensor) -> float:
    return float((a - b).abs().sum() / lengths.sum())


def _refuse(difference: float, allowed: float, what: str, consequence: str) -> None:
    if not difference <= allowed:  # true of NaN as well
        raise ModelError(
            f"{what} differ by {difference:.2g} nats per token; at most {allowed:g} is allowed. {consequence}"
        )


@torch.no_grad()
def stock_difference(policy: Policy, row: Mapping[str, Any]) -> float:
    """Compute the mean absolute difference in nats between the model's own next-token log-probabilities and ours.

    The temperature is taken out of ours. A scale of the logits that the text configuration states may be missing from
    the model's own, because some classes of transformers forget it (Granite Speech): the smaller difference counts.
    """
    inputs = policy.inputs([row])
    last = inputs["attention_mask"][0].nonzero()[-1, 0]
    with policy.precision():
        stock = policy.base(**inputs, **policy.family.forward, use_cache=False).logits[0, last].float()
    prompt = policy.embed([row])[0]
    hidden = policy.decode(prompt.embeddings[None], use_cache=False)[0, -1]
    ours = policy.logits(hidden).log_softmax(-1) * policy.temperature
    candidates = [(scale * ours).log_softmax(-1) for scale in {1.0, stated_scale(policy.text_config) or 1.0}]
    wanted = stock.log_softmax(-1)
    return min(float((candidate - wanted).abs().mean()) for candidate in candidates)


@torch.no_grad()
def plain_log_probs(policy: Policy, prompt: Prompt, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Compute log-probabilities (K, T) from K right-padded copies of the prompt, without packing; padding is 0."""
    tokens = tokens.to(policy.device)
    copies = prompt.embeddings[None].expand(tokens.shape[0], -1, -1)
    embedded = policy.embed_tokens(tokens[:, :-1]).to(copies.dtype)
    hidden = policy.decode(torch.cat([copies, embedded], 1), use_cache=False)
    logits = policy.logits(hidden[:, prompt.length - 1 :])
    values = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return values * (torch.arange(tokens.shape[1])[None] < lengths[:, None]).to(values.device)


def audio_effect(
    policy: Policy,
    rows: Sequence[Mapping[str, Any]],
    trees: Sequence[PrefixTree],
    scores: Sequence[Tensor],
) -> float:
    """Compute how much log-probabilities change (mean, nats per token) when noise takes the audio's place.

    Args:
        policy: the model.
        rows: the rows that completions were drawn for.
        trees: their completions.
        scores: log-probabilities (K, T) of these with the audio.
    """
    rate = policy.family.sampling_rate(policy.processor)
    noise = np.random.default_rng(0)
    swapped = []
    for row in rows:
        wave = load_audio(audio_of(row), sampling_rate=rate)
        array = noise.normal(0.0, float(np.sqrt(np.mean(wave**2))), len(wave)).astype(np.float32)
        swapped.append(with_audio(row, {"array": array.clip(-1, 1), "sampling_rate": rate}))
    others = score(policy, policy.embed(swapped), trees).log_probs
    return _mean([a - b for a, b in zip(scores, others, strict=True)], trees)


def _mean(differences: Sequence[Tensor], trees: Sequence[PrefixTree]) -> float:
    """Compute the mean size of differences (K, T) per token of completions."""
    return sum(float(one.abs().sum()) for one in differences) / sum(int(tree.lengths.sum()) for tree in trees)

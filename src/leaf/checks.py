"""Start-up checks that refuse to train: the packed forward is right, and the audio reaches the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaf.credit.tree import PrefixTree
from leaf.errors import ModelError
from leaf.speech.audio import load_audio
from leaf.speech.policy import Policy, Prompt
from leaf.speech.sampling import sample

# Largest mean difference in log-probability (nats per token) between the packed and the plain forward.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# Replacing the recording by noise must move log-probabilities by at least this many nats per token on average.
AUDIO_EFFECT = 1e-3


@torch.no_grad()
def check_policy(policy: Policy, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Check a policy on real rows and return lines that say what is trained and what was checked.

    Raises:
        ModelError: packed log-probabilities differ from one plain copy, or the audio does not move them.
    """
    policy.eval()
    counts = policy.describe()
    lines = [
        f"trainable {counts['trainable']:,} of {counts['total']:,} parameters: the adapter on the language model "
        f"({counts['language_model']:,}); frozen: audio tower ({counts['audio_tower']:,}), "
        f"projector ({counts['projector']:,})"
    ]
    prompts = policy.embed(rows)
    generator = torch.Generator().manual_seed(0)
    groups = sample(policy, prompts, num_completions=4, max_new_tokens=12, generator=generator)
    scores = policy(prompts, [group.tree for group in groups]).log_probs
    worst = max(
        float((packed - plain_log_probs(policy, g.prompt, g.tokens, g.lengths)).abs().sum() / g.lengths.sum())
        for packed, g in zip(scores, groups, strict=True)
    )
    allowed = TOLERANCE[policy.base.dtype]
    if not worst <= allowed:
        raise ModelError(
            f"The packed forward differs from plain copies by {worst:.2g} nats per token; at most {allowed:g} is "
            "allowed. This model's attention does not honour the tree mask, so training on it would be wrong."
        )
    lines.append(f"packed forward equals plain copies: {worst:.1e} nats per token (allowed {allowed:g})")
    moved = audio_effect(policy, rows, prompts, [group.tree for group in groups], scores)
    if not moved >= AUDIO_EFFECT:
        raise ModelError(
            f"Replacing the audio by noise moves the log-probabilities by only {moved:.2g} nats per token: the audio "
            "does not reach the model. Check the prompt's audio placeholder and the projector's weights."
        )
    lines.append(f"audio reaches the model: noise in its place moves log-probabilities by {moved:.2f} nats per token")
    return lines


@torch.no_grad()
def plain_log_probs(policy: Policy, prompt: Prompt, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return (K, T) log-probabilities from K right-padded copies of the prompt, without packing; padding is 0."""
    tokens = tokens.to(policy.device)
    copies = prompt.embeddings[None].expand(tokens.shape[0], -1, -1)
    embedded = policy.base.get_input_embeddings()(tokens[:, :-1]).to(copies.dtype)
    hidden = policy.language_model(inputs_embeds=torch.cat([copies, embedded], 1), use_cache=False).last_hidden_state
    logits = policy.logits(hidden[:, prompt.length - 1 :])
    values = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return values * (torch.arange(tokens.shape[1])[None] < lengths[:, None]).to(values.device)


def audio_effect(
    policy: Policy,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    trees: Sequence[PrefixTree],
    scores: Sequence[Tensor],
) -> float:
    """Return the mean absolute change of log-probability (nats per token) when noise takes the audio's place."""
    rate = policy.processor.feature_extractor.sampling_rate
    noise = np.random.default_rng(0)
    swapped = []
    for row in rows:
        wave = load_audio(row["audio"], sampling_rate=rate)
        array = noise.normal(0.0, float(np.sqrt(np.mean(wave**2))), len(wave)).astype(np.float32)
        swapped.append({**row, "audio": {"array": array.clip(-1, 1), "sampling_rate": rate}})
    others = policy(policy.embed(swapped), trees).log_probs
    moved = sum(float((a - b).abs().sum()) for a, b in zip(scores, others, strict=True))
    return moved / sum(int(tree.lengths.sum()) for tree in trees)

"""Part `equality`: the fast paths of every family against plain copies, on the tests' tiny models."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import peft
import torch
from torch import Tensor

from benchmarks.gpu.part import Result
from leaf.model.checks import TOLERANCE, plain_log_probs
from leaf.model.families import family_of
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import Group, sample
from leaf.model.scoring import layout_for, score

# Modules of tests/helpers/models; each has `build`. They are imported one by one, for an older transformers lacks some.
MODELS = ("gemma3n", "glmasr", "granite_speech", "musicflamingo", "nemotron_h_omni", "phi4_multimodal", "qwen2_5_omni")
MODELS += ("qwen2_audio", "qwen3_asr", "qwen3_omni_moe", "vibevoice_asr", "voxtral")
# Of a gradient in float32, ‖Δ‖ over ‖g‖. In bfloat16 the fast one may be as far from copies as twice what copies are
# from themselves in float32.
GRADIENT, TIMES_ROUNDING = 1e-3, 2.0
LENGTHS = (23, 40)  # of the prompts


def equality(device: torch.device, small: bool, result: Result) -> None:
    """Compare every family in float32 and bfloat16."""
    for name in ("audioflamingo3", *(MODELS[:1] if small else MODELS)):
        for dtype in (torch.float32, torch.bfloat16):
            given = {"family": name, "dtype": str(dtype).removeprefix("torch.")}
            result.add(given, lambda name=name, dtype=dtype: compare(name, device, dtype))


def compare(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Compare scorer, gradient and sampler of one family with plain copies."""
    policy = build(name, device, dtype)
    prompts = list(prompts_of(policy, LENGTHS))
    groups = sample(
        policy,
        prompts,
        num_completions=5,
        max_new_tokens=9,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        plain = [plain_log_probs(policy, g.prompt, g.tokens, g.lengths) for g in groups]
        scored = score(policy, prompts, [group.tree for group in groups]).log_probs
    log_probs = max(_difference(a, b, g) for a, b, g in zip(scored, plain, groups, strict=True))
    sampler = max(_difference(-g.surprisal.to(device), b, g) for g, b in zip(groups, plain, strict=True))
    layout = layout_for(policy).name
    ours, theirs = _gradient(policy, groups, None), _gradient(policy, groups, "copies")
    apart, allowed = float((ours - theirs).norm() / theirs.norm()), GRADIENT
    if dtype != torch.float32:
        exact = build(name, device, torch.float32)
        twins = [replace(g, prompt=p) for g, p in zip(groups, prompts_of(exact, LENGTHS), strict=True)]
        allowed = TIMES_ROUNDING * float((theirs - _gradient(exact, twins, "copies")).norm() / theirs.norm())
    within = max(log_probs, sampler) <= TOLERANCE[dtype] and apart <= allowed
    return {
        "layout": layout,
        "log_probs": log_probs,
        "sampler": sampler,
        "gradient": apart,
        "gradient_allowed": allowed,
        "equal": bool(within),
    }


def build(name: str, device: torch.device, dtype: torch.dtype) -> Policy:
    """Make the tests' tiny model of a family, the same weights every time."""
    module = importlib.import_module(
        "tests.helpers.tiny" if name == "audioflamingo3" else f"tests.helpers.models.{name}"
    )
    model, processor = (module.tiny_model if name == "audioflamingo3" else module.build)()
    family = family_of(model.config)
    with torch.no_grad():  # these models may say the placeholder, which no path takes for a word
        model.get_submodule(family.head).weight[processor.tokenizer.convert_tokens_to_ids(family.audio_token)] = 0.0
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    return Policy.wrap(model.to(device, dtype), processor, lora=lora).to(device)


def prompts_of(policy: Policy, lengths: tuple[int, ...]) -> Iterator[Prompt]:
    """Yield prompts of random token ids: what runs behind them does not know where embeddings come from."""
    generator = torch.Generator().manual_seed(0)
    words = policy.text_config.vocab_size
    for length in lengths:
        ids = torch.randint(8, words, (length,), generator=generator).to(policy.device)
        with torch.no_grad():
            embeddings = policy.embed_tokens(ids)
        yield Prompt(embeddings, torch.zeros(length, dtype=torch.bool, device=policy.device))


def _difference(ours: Tensor, theirs: Tensor, group: Group) -> float:
    """Compute the mean absolute difference in nats per token."""
    return float((ours - theirs).abs().sum() / group.lengths.sum())


def _gradient(policy: Policy, groups: list[Group], layout: str | None) -> Tensor:
    """Compute the gradient of the mean log-probability, in one vector; `layout` None is the fast one."""
    was, policy.layout = policy.layout, layout
    policy.zero_grad()
    scores = score(policy, [g.prompt for g in groups], [g.tree for g in groups]).log_probs
    torch.stack([values.mean() for values in scores]).sum().backward()
    policy.layout = was
    # An adapter that no token reaches (an expert) has no gradient.
    return torch.cat([p.grad.flatten().float() for p in policy.parameters() if p.requires_grad and p.grad is not None])

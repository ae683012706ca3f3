"""Every family on a tiny model with its real processor, and what its stock model says of the same completions."""

import peft
import torch

from leaf.model.distinct import sample_distinct
from leaf.model.families import family_of
from leaf.model.layer_forward import plain_forward
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from tests.helpers import tiny
from tests.helpers.models import (
    gemma3n,
    glmasr,
    granite_speech,
    musicflamingo,
    nemotron_h_omni,
    phi4_multimodal,
    qwen2_5_omni,
    qwen2_audio,
    qwen3_asr,
    qwen3_omni_moe,
    vibevoice_asr,
    voxtral,
)

CASES = {
    "audioflamingo3": tiny.tiny_model,
    "gemma3n": gemma3n.build,
    "gemma3n wide": lambda: gemma3n.build(sliding_window=512),
    "glmasr": glmasr.build,
    "granite_speech": granite_speech.build,
    "granite_speech 4 dense": lambda: granite_speech.build(text=granite_speech.DENSE_4),
    "granite_speech 4 hybrid": lambda: granite_speech.build(text=granite_speech.HYBRID_4),
    "granite_speech_plus": lambda: granite_speech.build(plus=True),
    "musicflamingo": musicflamingo.build,
    "nemotron_h_omni": nemotron_h_omni.build,
    "phi4_multimodal": phi4_multimodal.build,
    "qwen2_5_omni": qwen2_5_omni.build,
    "qwen2_audio": qwen2_audio.build,
    "qwen2_audio sliding": lambda: qwen2_audio.build(window=9),
    "qwen3_asr": qwen3_asr.build,
    "qwen3_omni_moe": qwen3_omni_moe.build,
    "vibevoice_asr": vibevoice_asr.build,
    "voxtral": voxtral.build,
}
TEMPERATURE = 0.7


def build(case):
    """Return (model, processor) that hardly ever says the audio placeholder."""
    model, processor = CASES[case]()
    family = family_of(model.config)
    with torch.no_grad():
        model.get_submodule(family.head).weight[processor.tokenizer.convert_tokens_to_ids(family.audio_token)] = 0.0
    return model, processor


def policy_of(case, **options):
    model, processor = build(case)
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    return Policy.wrap(model, processor, lora=lora, temperature=TEMPERATURE, **options)


def groups_of(policy, rows, *, distinct=False, **options):
    prompts = policy.embed(rows)
    options = {"num_completions": 5, "max_new_tokens": 9, "temperature": TEMPERATURE} | options
    for seed in range(20):  # a placeholder that a model happens to say is audio to the stock forward
        draws = [torch.Generator().manual_seed(97 * seed + i) for i in range(len(rows))]
        if distinct:
            groups = sample_distinct(policy, prompts, draws, **options)
        else:
            groups = sample(policy, prompts, generator=torch.Generator().manual_seed(seed), **options)
        if not any(bool((group.tokens == policy.audio_token_id).any()) for group in groups):
            return groups
    raise AssertionError("every seed sampled the audio placeholder")


def stock_inputs(policy, rows):
    """Return the processor's tensors per row, cut from one padded batch unless batch mates change them."""
    if policy.family.alone:
        return [policy.inputs([row]) for row in rows]
    inputs = policy.inputs(rows)
    return [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(len(rows))]


def stock_log_probs(policy, rows, groups):
    """Score completions by the outer forward and peft's own on K padded copies of each prompt with its audio."""
    found = []
    for inputs, group in zip(stock_inputs(policy, rows), groups, strict=True):
        copies = {key: value.repeat_interleave(len(group.lengths), 0) for key, value in inputs.items()}
        real = torch.arange(group.tokens.shape[1]) < group.lengths[:, None]
        prompt = copies["input_ids"].shape[1]
        copies["input_ids"] = torch.cat([copies["input_ids"], group.tokens], 1)
        copies["attention_mask"] = torch.cat([copies["attention_mask"], real.long()], 1)
        with plain_forward(policy):
            logits = policy.base(**copies, **policy.family.forward, use_cache=False).logits[:, prompt - 1 : -1].float()
        logits = logits / (policy.logits_scale * policy.temperature)
        found.append(logits.log_softmax(-1).gather(-1, group.tokens[..., None]).squeeze(-1) * real)
    return found


def gradient(policy, log_probs, weights):
    policy.zero_grad()
    torch.stack([(w * p).sum() for w, p in zip(weights, log_probs, strict=True)]).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


def assert_same_gradients(got, wanted):
    for name, value in wanted.items():
        assert float((got[name] - value).abs().max()) <= 1e-4 * float(value.abs().max()) + 1e-9, name

"""Part `granite`: one rl step of Granite Speech 3.3 2B's shape, 30 s of audio, K = 8, under a limit of 16 GB.

The encoder and the projector run on random features of 30 s, as many as its feature extractor makes; the extractor
itself needs torchaudio, which a bare machine lacks.
"""

import time
from types import SimpleNamespace
from typing import Any

import peft
import torch

from benchmarks.gpu.part import Result
from benchmarks.granite_shape import granite_speech
from benchmarks.step.arms import leaf_credit, leaf_update
from benchmarks.step.bench import Bench
from leaf.memory import peak_bytes, reset_peak
from leaf.model.budget import measure_update
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import sample
from tests.helpers.models.common import train_tokenizer

LIMIT_GB = 16
SECONDS, FRAMES_PER_SECOND, FEATURES = 30, 50, 160  # 80 mel bins of 10 ms, two frames stacked
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL_TEXT |= {"num_hidden_layers": 2, "vocab_size": 400}


def granite(device: torch.device, small: bool, result: Result) -> None:
    """Take two steps with gradient checkpointing and, in a second entry, without."""
    for checkpointing in (True, False):
        result.add({"gradient_checkpointing": checkpointing}, lambda on=checkpointing: take_steps(device, small, on))


def take_steps(device: torch.device, small: bool, checkpointing: bool) -> dict[str, Any]:
    """Take two steps, so that the second has the optimiser's moments; return its peak and seconds."""
    cuda = device.type == "cuda"
    if cuda:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GB * 1e9 / total), device)
    dtype = torch.bfloat16 if cuda else torch.float32
    model = granite_speech(
        dtype,
        device,
        audio_token=3,
        text=SMALL_TEXT if small else None,
        encoder={"num_layers": 1} if small else None,
    )
    special = ["<|end_of_text|>", "<|a|>", "<|b|>", "<|audio|>"]
    tokenizer = train_tokenizer(special, eos="<|end_of_text|>", pad="<|end_of_text|>")
    lora = peft.LoraConfig(r=4 if small else 64, lora_alpha=128, target_modules="all-linear")
    processor = SimpleNamespace(tokenizer=tokenizer)
    policy = Policy.wrap(model, processor, lora=lora, gradient_checkpointing=checkpointing).to(device)
    policy.eos_token_ids = (-1,)
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    args = SimpleNamespace(device=str(device), dtype=str(dtype).removeprefix("torch."))
    bench = Bench(args, policy, trained, torch.optim.AdamW(trained.values(), lr=0.0))  # type: ignore[arg-type]
    made: dict[str, Any] = {"parameters": policy.describe()["total"], "trainable": policy.describe()["trainable"]}
    completions, length = (3, 4) if small else (8, 50)
    features = torch.randn(1, (2 if small else SECONDS) * FRAMES_PER_SECOND, FEATURES, device=device, dtype=dtype)
    policy.token_budget = 1  # one group a forward
    for number in (1, 2):
        reset_peak(device)
        began = time.perf_counter()
        prompts = [heard(policy, features)]
        groups = sample(
            policy,
            prompts,
            num_completions=completions,
            max_new_tokens=length,
            temperature=1.0,
            generator=torch.Generator().manual_seed(number),
            token_budget=4096,
        )
        sampled = peak_bytes(device)
        policy.train()
        leaf_update(bench, leaf_credit(groups, device))
        policy.eval()
        if cuda:
            torch.cuda.synchronize()
        made |= {"seconds": round(time.perf_counter() - began, 2), "until_sampled_gb": round(sampled / 1e9, 2)}
        made |= {"peak_gb": round(peak_bytes(device) / 1e9, 2), "prompt_tokens": prompts[0].length}
    made |= {"limit_gb": LIMIT_GB if cuda else None, "completions": completions, "length": length}
    made["nodes"] = groups[0].tree.num_nodes
    measured = measure_update(policy, prompts[0].length, completions * length)
    return made | {"measured_mb_per_token": round(measured.per_token / 1e6, 3), "measured_on": measured.tokens}


@torch.no_grad()
def heard(policy: Policy, features: torch.Tensor) -> Prompt:
    """Make a prompt of random token ids around what encoder and projector make of features."""
    encoded: Any = policy.audio_tower(features)
    projected: Any = policy.projector(getattr(encoded, "last_hidden_state", encoded))
    audio = getattr(projected, "last_hidden_state", projected)[0]
    ids = torch.arange(4, 24, device=features.device)
    words = policy.embed_tokens(ids)
    embeddings = torch.cat([words[:10], audio.to(words.dtype), words[10:]])
    is_audio = torch.zeros(len(embeddings), dtype=torch.bool, device=features.device)
    is_audio[10:-10] = True
    return Prompt(embeddings, is_audio)

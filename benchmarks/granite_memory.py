"""Measure the memory of one rl step on a model of Granite-Speech-3.3-2B's shape: 30 s of audio, K = 8 completions.

    python -m benchmarks.granite_memory [--completions 8] [--length 50] [--dtype bfloat16] [--no-checkpointing]

The model has the published shape (encoder, Q-Former, language model) and random weights, its real processor class, and
LoRA of rank 64 on every linear layer of the language model, in float32 with AdamW, as the published recipe has it. One
prompt with 30 s of recorded speech; completions of exactly `--length` tokens (an end token ends nothing). Measured is a
whole step of `LeafTrainer`: embed, sample, reward, credit, reference, update, optimiser. Peak: on the CPU the resident
high-water mark of the whole process, interpreter and libraries included; on CUDA what tensors take. Every step is run
twice, so that the optimiser's moments are there in the second.
"""

import argparse
import json
import platform
import tempfile
import time

import torch
from transformers import (
    AutoTokenizer,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechProcessor,
)
from transformers.utils import logging

from benchmarks.granite_shape import granite_speech
from benchmarks.records import RESULTS
from leaf import LeafTrainer
from leaf.config import LeafConfig
from leaf.data import load
from leaf.data.audio import load_audio
from leaf.memory import available_bytes, peak_bytes, reset_peak
from leaf.model.demo import resolve_model
from leaf.model.footprint import footprint_of

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SECONDS = 30


def build(
    dtype: torch.dtype, device: torch.device
) -> tuple[GraniteSpeechForConditionalGeneration, GraniteSpeechProcessor]:
    """Return a model of ibm-granite/granite-speech-3.3-2b's shape with small random weights, and its processor."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|audio|>"]})
    model = granite_speech(dtype, device, audio_token=tokenizer.convert_tokens_to_ids("<|audio|>"))
    processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), tokenizer, chat_template=TEMPLATE)
    return model, processor


def prompt_row():
    """Return one row with 30 s of recorded speech."""
    recordings = [path for row in load("asterisk_qa", "train").select(range(40)) for path in row["audio"]]
    wave = load_audio(recordings)[: SECONDS * 16000]
    assert len(wave) == SECONDS * 16000
    audio = {"array": wave, "sampling_rate": 16000}
    return {"prompt": "Answer the question about the recording.", "audio": audio, "reference": "press one"}


def measure(args):
    """Build the model, take two steps and describe what they took."""
    device = torch.device(args.device)
    model, processor = build(getattr(torch, args.dtype), device)
    with tempfile.TemporaryDirectory() as folder:
        recipe = LeafConfig(
            dtype=args.dtype,
            device=args.device,
            lora_r=64,
            lora_alpha=128,
            lora_dropout=0.0,
            prompts_per_rollout=1,
            num_completions=args.completions,
            max_new_tokens=args.length,
            gradient_checkpointing=args.checkpointing,
            rewards=["chrf"],
            output_dir=f"{folder}/run",
            learning_rate=0.0,
            max_prompt_tokens=512,
        )
        trainer = LeafTrainer(model, None, recipe, [prompt_row()], processing_class=processor)
        trainer.policy.eos_token_ids = (-1,)
        steps, group = take_two_steps(trainer, device)
    policy = trainer.policy
    counts, row = policy.describe(), group.prompt.length + int((~group.tree.is_leaf).sum())
    return {
        "machine": f"{platform.machine()} {device}, {args.threads} threads, torch {torch.__version__}",
        "dtype": args.dtype,
        "gradient_checkpointing": args.checkpointing,
        "audio_seconds": SECONDS,
        "prompt_tokens": group.prompt.length,
        "completions": args.completions,
        "completion_tokens": args.length,
        "nodes": group.tree.num_nodes,
        "parameters": counts["total"],
        "trainable": counts["trainable"],
        "token_budget": policy.token_budget,
        "steps": steps,
        "estimated_gb": footprint_of(policy).total(row, row) / 1e9,
        "available_gb_after": available_bytes(device) / 1e9,
    }


def take_two_steps(trainer, device):
    """Take two steps; return peaks and seconds of each, and the group of the last."""
    steps, group = [], None
    for step in (1, 2):
        reset_peak(device)
        began = time.perf_counter()
        rollout = trainer.rollout(step)
        sampled = peak_bytes(device)
        trainer.update(rollout)
        steps.append({"peak_gb": peak_bytes(device) / 1e9, "until_sampled_gb": sampled / 1e9})
        steps[-1]["seconds"] = time.perf_counter() - began
        steps[-1]["stages"] = {name: round(value, 2) for name, value in trainer.seconds.items()}
        trainer.seconds = {}
        print(json.dumps(steps[-1]), flush=True)
        group = rollout.groups[0]
    return steps, group


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    record = measure(args)
    name = f"granite_memory_{'checkpointed' if args.checkpointing else 'plain'}.json"
    (RESULTS / name).write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

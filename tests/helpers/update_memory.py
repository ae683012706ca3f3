"""One update of a policy of any shape; `python -m tests.helpers.update_memory CELL` measures it in its own process."""

import gc
import json
import sys
from pathlib import Path

import peft
import torch
from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration

from leaf.credit.tree import PrefixTree
from leaf.memory import peak_bytes, reset_peak
from leaf.model.policy import Policy, Prompt
from leaf.model.scoring import score
from tests.helpers.models.common import flamingo_encoder
from tests.helpers.tiny import tiny_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CELL = {
    "hidden": 128,
    "inner": 352,
    "layers": 4,
    "first": 0,
    "heads": 4,
    "keys": 2,
    "vocabulary": 2000,
    "lora_r": 8,
    "dropout": 0.0,
    "dtype": "float32",
    "checkpointing": False,
    "rows": 2,
    "prompt": 150,
    "completions": 4,
    "length": 26,
}


def text_config(cell):
    return {
        "model_type": "llama",
        "vocab_size": cell["vocabulary"],
        "hidden_size": cell["hidden"],
        "intermediate_size": cell["inner"],
        "num_hidden_layers": cell["layers"],
        "num_attention_heads": cell["heads"],
        "num_key_value_heads": cell["keys"],
        "max_position_embeddings": 4096,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }


def build(cell):
    """Return a policy on a random model of a cell's shape, and the groups of one update."""
    torch.manual_seed(0)
    dtype = getattr(torch, cell["dtype"])
    audio = flamingo_encoder(100)
    config = AudioFlamingo3Config(audio_config=audio, text_config=text_config(cell), audio_token_id=3)
    model = AudioFlamingo3ForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    adapted = list(range(cell["first"], cell["layers"]))
    lora = peft.LoraConfig(
        r=cell["lora_r"], lora_dropout=cell["dropout"], target_modules=list(ALL), layers_to_transform=adapted
    )
    options = {"token_budget": 10**6, "layout": "tree"}
    policy = Policy.wrap(
        model, tiny_model()[1], lora=lora, gradient_checkpointing=cell["checkpointing"], **options
    ).train()

    def group(length, completions, tokens):
        embeddings = torch.randn(length, cell["hidden"]).to(dtype)
        ids = torch.arange(completions * tokens).view(completions, tokens) % (cell["vocabulary"] - 4) + 4
        tree = PrefixTree.build(ids, torch.full((completions,), tokens))
        return Prompt(embeddings, torch.zeros(length, dtype=torch.bool)), tree

    run(policy, [group(8, 2, 4)]).backward()  # gradients stand from now on, kernels have set up what they keep
    return policy, [group(cell["prompt"], cell["completions"], cell["length"]) for _ in range(cell["rows"])]


def run(policy, groups):
    scores = score(policy, [prompt for prompt, _ in groups], [tree for _, tree in groups])
    return torch.stack([values.mean() for values in scores.log_probs]).sum()


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def measure(cell):
    """Return the bytes by which resident memory grows at the peak of one update."""
    torch.set_num_threads(1)
    policy, groups = build(cell)
    gc.collect()
    before = resident()
    assert reset_peak("cpu")
    run(policy, groups).backward()
    return peak_bytes("cpu") - before


if __name__ == "__main__":
    print(measure(json.loads(sys.argv[1])))

"""Train a text model with LEAF's credit in TRL's GRPOTrainer.

    python examples/trl_leaf.py
    torchrun --nproc_per_node 2 examples/trl_leaf.py

A small transformer, made on the spot, learns to spell four words. A completion earns the share of its letters that are
in the right place. It takes less than a minute on a CPU. With `--model`, a checkpoint of your own learns the same.
"""

import argparse

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl.trainer.grpo_config import GRPOConfig

from leaf.engines.trl import LeafGRPOTrainer

WORDS = ["leaf", "tree", "branch", "twig"]
PROMPTS = [word.upper() for word in WORDS]  # one token each to the tiny model


def spelled(completions, word, **columns):
    """Score the share of letters in the right place, of the longer of word and completion."""
    return [
        sum(a == b for a, b in zip(said, wanted, strict=False)) / max(len(said), len(wanted))
        for said, wanted in zip(completions, word, strict=True)
    ]


def tiny_model():
    """Make a transformer of two layers that reads letters, and its tokenizer."""
    letters = sorted(set("".join(WORDS)))
    known = {token: i for i, token in enumerate(["<end>", *PROMPTS, *letters])}
    tokens = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{'|'.join(PROMPTS)}|."), "isolated")
    tokens.decoder = decoders.Fuse()  # no spaces between letters
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<end>")
    shape = LlamaConfig(
        vocab_size=len(known),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(shape), tokenizer


def main() -> None:
    """Train, and say what the first and the last steps earned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub id of a language model; without one, a tiny one is made")
    parser.add_argument("--credit", default="leaf", help="credit rule of leaf")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", default="runs/trl_leaf")
    arguments = parser.parse_args()
    set_seed(0)
    if arguments.model is None:
        model, tokenizer = tiny_model()
        prompts = PROMPTS
    else:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
        prompts = [f"Repeat the word {word} and nothing else:" for word in WORDS]
    config = GRPOConfig(
        output_dir=arguments.out,
        max_steps=arguments.steps,
        learning_rate=2e-3 if arguments.model is None else 1e-6,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,  # four prompts a step
        num_generations=8,  # completions of a prompt: the group
        max_completion_length=8,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=10,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = LeafGRPOTrainer(
        model,
        spelled,
        config,
        Dataset.from_dict({"prompt": prompts * 8, "word": WORDS * 8}),  # TRL leaves out what does not fill a batch
        processing_class=tokenizer,
        credit=arguments.credit,
        credit_options={"max_boundaries": 2} if arguments.credit == "leaf" else None,
    )
    trainer.train()
    trainer.save_model()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    if trainer.accelerator.is_main_process:
        print(f"{arguments.credit}: mean reward {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last")


if __name__ == "__main__":
    main()

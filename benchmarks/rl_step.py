"""Time one rl step against the same step done with stock parts, in one process with the same model and prompts.

    python benchmarks/rl_step.py [--model demo] [--prompts 6] [--completions 8] [--repeats 3] [--dtype bfloat16]

leaf: prompts embedded once, prefilled once, tree-packed scoring. Stock: `generate(num_return_sequences=K)` on
all prompts, then per prompt a padded batch of K copies (audio included) for reference and update, logits at completion
positions only. Both sample at T = 1, top-p 0.9, and take one gradient of the same loss on the same tokens (leaf's).
Repeats alternate; medians with range. Results go to benchmarks/results/rl_step.json.
"""

import argparse
import json
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path

import peft
import torch
from transformers.utils import logging

from leaf.credit import credit_rule, policy_loss, token_weights
from leaf.demo_model import resolve_model
from leaf.rewards import RewardSum
from leaf.speech.policy import Policy
from leaf.speech.sampling import sample
from leaf.tasks import load
from leaf.training import step_generator

MAX_NEW = 48


def leaf_sample(policy, rows, completions, step):
    prompts = policy.embed(rows)
    return sample(
        policy, prompts, num_completions=completions, max_new_tokens=MAX_NEW, top_p=0.9,
        generator=step_generator(0, step),
    )  # fmt: skip


def stock_sample(policy, rows, completions, step):
    torch.manual_seed(step)
    with torch.no_grad():
        return policy.base.generate(
            **policy.inputs(rows), num_return_sequences=completions, do_sample=True, temperature=1.0, top_p=0.9,
            top_k=0, max_new_tokens=MAX_NEW,
        )  # fmt: skip


def stock_loss(policy, row, group, advantage, weight):
    """Return one prompt's loss from a padded batch of K copies; K rows at a time, as memory demands."""
    completions, width = group.tokens.shape
    inputs = {k: v.repeat_interleave(completions, 0) for k, v in policy.inputs([row]).items()}
    mask = torch.arange(width)[None] < group.lengths[:, None]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], group.tokens], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask.long()], 1)

    def log_probs():
        logits = policy.base(**inputs, logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, group.tokens[..., None]).squeeze(-1)

    with torch.no_grad(), policy.reference():
        reference = log_probs()
    new = log_probs()
    return policy_loss(new, new.detach(), advantage, mask, weights=weight, ref_logp=reference)[0]


def leaf_loss(policy, groups, advantages, weights):
    """Return the loss of all groups from packed forwards."""
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    with torch.no_grad(), policy.reference():
        reference = policy(prompts, trees).log_probs
    new = policy(prompts, trees).log_probs
    parts = zip(new, reference, trees, advantages, weights, strict=True)
    return sum(policy_loss(n, n.detach(), a, t.node >= 0, weights=w, ref_logp=r)[0] for n, r, t, a, w in parts)


def gradients(policy):
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.requires_grad}
    policy.zero_grad()
    return found


def summary(values):
    return {
        "median": round(statistics.median(values), 3),
        "range": [round(min(values), 3), round(max(values), 3)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    lora = peft.LoraConfig(r=16, lora_alpha=32)
    policy = Policy.load(resolve_model(args.model), lora=lora, dtype=args.dtype, token_budget=2048)
    data = load("asterisk_qa", "train").shuffle(seed=0)
    reward = RewardSum(["bleu"])
    seconds = {f"{side}_{stage}": [] for side in ("leaf", "stock") for stage in ("sample", "update", "step")}
    seconds["leaf_credit"] = []
    error = prompt_tokens = completion_tokens = 0.0
    for repeat in range(args.repeats + 1):  # the first is a warm-up
        rows = data.select(range(repeat * args.prompts, (repeat + 1) * args.prompts)).to_list()
        marks = [time.perf_counter()]
        groups = leaf_sample(policy, rows, args.completions, repeat)
        marks.append(time.perf_counter())
        advantages, credit = [], 0.0
        for row, group in zip(rows, groups, strict=True):
            texts = group.texts(policy.tokenizer)
            totals = reward(completions=texts, reference=[row["reference"]] * len(texts)).totals
            began = time.perf_counter()
            values = credit_rule("leaf")(group.tree, torch.from_numpy(totals), surprisal=group.surprisal)
            credit += time.perf_counter() - began
            advantages.append(values.float())
        marks.append(time.perf_counter())
        weights = token_weights([g.tree.node >= 0 for g in groups])
        leaf_loss(policy, groups, advantages, weights).backward()
        marks.append(time.perf_counter())
        fast = gradients(policy)
        stock_sample(policy, rows, args.completions, repeat)
        marks.append(time.perf_counter())
        for one in zip(rows, groups, advantages, weights, strict=True):
            stock_loss(policy, *one).backward()
        marks.append(time.perf_counter())
        slow = gradients(policy)
        error = max(
            error,
            max(float((fast[n] - g).norm()) for n, g in slow.items()) / max(float(g.norm()) for g in slow.values()),
        )
        prompt_tokens += sum(group.prompt.length for group in groups) / len(groups) / (args.repeats + 1)
        completion_tokens += float(torch.cat([g.lengths for g in groups]).double().mean()) / (args.repeats + 1)
        if repeat == 0:
            continue
        between = [b - a for a, b in pairwise(marks)]
        for name, value in {
            "leaf_sample": between[0], "leaf_update": between[2], "leaf_step": sum(between[:3]),
            "stock_sample": between[3], "stock_update": between[4],
            "stock_step": between[3] + between[1] + between[4], "leaf_credit": credit,
        }.items():  # fmt: skip
            seconds[name].append(value)
        print(
            f"repeat {repeat}: leaf {sum(between[:3]):.1f} s, stock {between[3] + between[1] + between[4]:.1f} s",
            flush=True,
        )
    ratios = {
        stage: summary([s / f for s, f in zip(seconds[f"stock_{stage}"], seconds[f"leaf_{stage}"], strict=True)])
        for stage in ("sample", "update", "step")
    }
    result = {
        "machine": f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, {args.dtype}",
        "model": args.model,
        "prompts": args.prompts,
        "completions": args.completions,
        "mean_prompt_tokens": round(prompt_tokens, 1),
        "mean_completion_tokens": round(completion_tokens, 1),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "times_faster": ratios,
        "credit_share_of_step": summary(
            [c / s for c, s in zip(seconds["leaf_credit"], seconds["leaf_step"], strict=True)]
        ),
        "largest_gradient_difference": error,
    }
    Path(__file__).with_name("results").mkdir(exist_ok=True)
    Path(__file__).with_name("results").joinpath("rl_step.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

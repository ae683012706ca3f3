"""The checkpoint and prompts that all measurements share, the rules they compare, and where records go."""

import random
import time
from pathlib import Path

import numpy as np
import peft
import torch

from benchmarks.recipe import task_recipe
from benchmarks.records import RESULTS, machine
from leaf.credit import credit_rule
from leaf.data import load
from leaf.model.choosing import choose
from leaf.model.decoding import decoder
from leaf.model.demo import resolve_model
from leaf.model.draws import step_generator
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.rewards.total import Rewards

BUDGET = 2  # boundaries, as published
DRAWS = 8  # random choices of boundaries that are averaged
AT_ONCE = 256  # continuations decoded together
PROMPTS_AT_ONCE = 4  # sampled together for forkability, as in training
TRUTH = "rloo"  # the unbiased rule whose mean over the other groups stands for the true gradient
RULES = {
    "rloo": credit_rule("rloo"),
    "leaf": credit_rule("leaf", max_boundaries=BUDGET),
    "leaf sqrt_count=false": credit_rule("leaf", max_boundaries=BUDGET, sqrt_count=False),
    "tempo": credit_rule("tempo"),
    "shrunken": credit_rule("shrunken"),
    "shrunken own in": credit_rule("shrunken", leave_one_out=False),
}
FACTORS = {"grpo": credit_rule("grpo"), "dr_grpo": credit_rule("dr_grpo")}  # RLOO times a number per group
OTHERS = "r - V(prefix) of the other groups"
OTHERS_MEAN = "r - mean of the other groups"
MASS_RULES = {**RULES, "grpo": credit_rule("grpo"), "treerl": credit_rule("treerl"), "treepo": credit_rule("treepo")}
MORE_RULES = {  # only where a rule costs no backward of its own
    "leaf B=4": credit_rule("leaf", max_boundaries=4),
    "leaf sqrt_count=false normalize=false": credit_rule("leaf", sqrt_count=False, normalize=False),
    "treerl": credit_rule("treerl"),
    "treepo": credit_rule("treepo"),
    "spo": credit_rule("spo", credited="branching"),
}


class Bench:
    """Hold a checkpoint and a task's validation prompts, and sample and score as the recipe does."""

    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.config = config = task_recipe(args.task, [f"temperature={args.temperature}"])
        lora = peft.LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules=config.lora_layers)
        torch.manual_seed(args.seed)  # of a fresh adapter's A
        self.policy = Policy.load(
            resolve_model(config.model),
            lora=lora,
            adapter=args.adapter,
            dtype=config.dtype,
            temperature=config.temperature,
        )
        assert config.token_budget is not None
        self.policy.token_budget = config.token_budget
        self.reward = Rewards(config.rewards, options=config.reward_options)
        rows = load(config.task, args.split).to_list()
        random.Random(args.seed).shuffle(rows)
        self.rows, self.first = rows[args.skip : args.skip + args.prompts], args.skip
        self.seed = args.seed
        self.facts = {
            "task": args.task,
            "checkpoint": args.name or ("start" if args.adapter is None else Path(args.adapter).as_posix()),
            "split": args.split,
            "seed": args.seed,
            "machine": machine(args.threads),
        }

    def embedded(self, row):
        return self.policy.embed([row])[0]

    def groups(self, prompts, indices, completions, stream):
        """Sample a group per prompt, its randomness a function of seed, prompt and stream."""
        return sample(
            self.policy,
            prompts,
            num_completions=completions,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            generator=[step_generator(self.seed, index, stream) for index in indices],
        )

    def rewards(self, row, texts):
        return torch.as_tensor(self.reward(completions=texts, reference=[row["reference"]] * len(texts)).totals)

    @torch.no_grad()
    def continued(self, prompt, prefixes, count, generator):
        """Return the texts of `count` completions from each prefix (token ids), in the order of prefixes.

        All are decoded together: a completion takes its prefix's tokens first and draws its own from there on.
        """
        policy, config = self.policy.eval(), self.config
        prefixes = [prefix for prefix in prefixes for _ in range(count)]
        depth = torch.tensor([len(prefix) for prefix in prefixes])
        forced = torch.zeros(len(prefixes), config.max_new_tokens, dtype=torch.long)
        for row, prefix in zip(forced, prefixes, strict=True):
            row[: len(prefix)] = prefix
        tokens, lengths = forced.clone(), torch.zeros_like(depth)
        active = torch.arange(len(prefixes))
        row = torch.zeros_like(active)
        decode = decoder(policy, [prompt])
        logits = decode.start() * (policy.temperature / config.temperature)
        for step in range(config.max_new_tokens):
            draws = torch.rand(len(active), generator=generator, dtype=torch.float64)
            drawn = choose(logits, row, (config.top_p, None), False, draws)[0]
            chosen = torch.where(step < depth[active], forced[active, step], drawn)
            tokens[active, step], lengths[active] = chosen, step + 1
            ended = torch.isin(chosen, torch.tensor(policy.eos_token_ids))
            if bool(ended.all()):
                break
            if step + 1 == config.max_new_tokens:
                break
            active = active[~ended]
            branch, row = torch.unique(row[~ended] * logits.shape[-1] + chosen[~ended], return_inverse=True)
            logits = decode.advance(branch // logits.shape[-1], branch % logits.shape[-1])
            logits = logits * (policy.temperature / config.temperature)
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
        return [text.strip() for text in policy.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def true_values(self, row, prompt, tree, rewards, wanted, samples, generator):
        """Return (N + 1,) values of the wanted nodes' prefixes, squared standard errors, and variances of the reward.

        NaN where a node was not wanted. A leaf's value is its completion's reward. The last entry is the root's.
        """
        value = np.full(tree.num_nodes + 1, np.nan)
        error, spread = value.copy(), value.copy()
        ends = tree.node.gather(1, (tree.lengths - 1)[:, None]).squeeze(1)
        value[ends], error[ends], spread[ends] = rewards, 0.0, 0.0
        inner = [node for node in sorted(wanted) if node == tree.num_nodes or not tree.is_leaf[node]]
        owner = {int(node): k for k, path in enumerate(tree.node) for node in path[path >= 0]}
        prefixes = []
        for node in inner:
            root = node == tree.num_nodes
            prefixes.append(tree.tokens[0, :0] if root else tree.tokens[owner[node], : int(tree.depth[node]) + 1])
        step = max(AT_ONCE // samples, 1)
        for i in range(0, len(inner), step):
            texts = self.continued(prompt, prefixes[i : i + step], samples, generator)
            earned = self.rewards(row, texts).view(-1, samples).numpy()
            value[inner[i : i + step]] = earned.mean(1)
            spread[inner[i : i + step]] = earned.var(1, ddof=1)
        error[inner] = spread[inner] / samples
        return value, error, spread


def file_of(name):
    """Name the file of a command's records."""
    return RESULTS / f"resampling_{name}.jsonl"


def short(values, digits=5):
    """Return numbers with so many significant digits, for a small file; None for NaN."""
    return [None if not np.isfinite(x) else float(f"{x:.{digits}g}") for x in np.asarray(values, dtype=float).tolist()]


def bounded(bench, minutes):
    """Yield prompts with their index until the time is up."""
    began = time.monotonic()
    for index, row in enumerate(bench.rows, bench.first):
        if time.monotonic() - began > 60 * minutes:
            print(f"stopped before prompt {index}: {minutes} minutes are over", flush=True)
            return
        yield index, row
        print(f"prompt {index} done, {time.monotonic() - began:.0f} s", flush=True)

"""Measure credit on the real model: true values and gradients by re-sampling from shared prefixes.

    python benchmarks/resampling.py values --task qa --prompts 40 --samples 24
    python benchmarks/resampling.py gradients --task qa --prompts 32 --groups 16
    python benchmarks/resampling.py forkability --task fr --prompts 120 --adapter runs/learning/qa-leaf-0/last
    python benchmarks/resampling.py table

Prompts come from the validation split (the same ones for one seed), sampling and reward are those of recipes/qa.yaml.
Every command appends to benchmarks/results/resampling_*.jsonl, a line per prompt (`forkability`: per group), so a run
that is stopped loses one prompt; `table` prints what docs/results.md shows. `--adapter` names a saved adapter, its
absence the starting model; `--minutes` ends a run after the prompt at hand.
"""

import argparse
import json
import platform
import random
import time
from pathlib import Path

import numpy as np
import peft
import torch

from leaf.config import load_recipe
from leaf.credit import (
    Fork,
    credit_mass,
    credit_mass_by_position,
    credit_rule,
    entropy_boundaries,
    even_boundaries,
    fork_rates,
    fork_rates_by_position,
    forks,
    random_boundaries,
    select_boundaries,
    token_weights,
)
from leaf.credit.values import known_rewards, prefix_values, scored_completions, shrunken_values
from leaf.demo_model import resolve_model
from leaf.rewards import RewardSum
from leaf.speech.decoding import decoder
from leaf.speech.packing import pack
from leaf.speech.policy import Policy
from leaf.speech.sampling import _choose, sample
from leaf.speech.scoring import LAYOUTS
from leaf.tasks import load
from leaf.training import step_generator

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
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
    "spo": credit_rule("spo"),
}


# -- pure functions ----------------------------------------------------------------------------------------------------
def between_variance(group, values, noise):
    """Estimate how far true values lie apart, Σ_i (V_i − mean)² / n, from estimates with independent errors.

    Members with the same `group` id share one estimate and so one error; with w_c the share of members of id c, the
    errors add Σ_c w_c (1 − w_c) · noise_c on average, which is taken off. The result may be negative.

    Args:
        group: (n,) ids.
        values, noise: (n,) estimates and the squares of their standard errors, equal for equal ids.
    """
    _, first, counts = np.unique(group, return_index=True, return_counts=True)
    share, value, error = counts / len(group), np.asarray(values)[first], np.asarray(noise)[first]
    apart = value - (share * value).sum()
    return float((share * apart**2).sum() - (share * (1 - share) * error).sum())


def leave_one_out(estimates, truth):
    """Hold each group's gradient estimate against the mean of `truth` over all other groups.

    Args:
        estimates, truth: (G, D), the same groups in the same order; `truth` from an unbiased rule.

    Returns:
        cosine (G,), 0 where either is 0; dot (G,) with that mean, unbiased for ⟨E g, g*⟩; square (G,) squared norms.
    """
    size, total = len(truth), truth.sum(0)
    dot = (estimates @ total - (estimates * truth).sum(1)) / (size - 1)
    others = total.square().sum() - 2 * truth @ total + truth.square().sum(1)
    square = estimates.square().sum(1)
    norm = (square * others.clamp_min(0)).sqrt() / (size - 1)
    return torch.where(norm > 0, dot / norm.clamp_min(1e-30), 0.0), dot, square


def mean_square(vectors):
    """Estimate |E g|² without the noise of the mean: the average of ⟨g_a, g_b⟩ over pairs of different groups."""
    size = len(vectors)
    return float((vectors.sum(0).square().sum() - vectors.square().sum()) / (size * (size - 1)))


def bootstrap(statistic, count, *, rounds=4000, seed=0):
    """Return a statistic of prompts and its 95 % percentile interval; `statistic` takes an array of prompt indices."""
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(count, size=count)) for _ in range(rounds)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(statistic(np.arange(count))), float(low), float(high)


def others_baseline(tree, rewards, mine, kappa=1.0):
    """Return (k, T) the shrunken value of the prefix before each token, from completions that are not `mine` alone.

    Args:
        tree: prefix tree of all groups' completions together.
        rewards: (n,) all of them.
        mine: slice of the completions whose tokens get the baseline.
    """
    known = scored_completions(tree, rewards)
    theirs = known.clone()
    theirs[mine] = False
    reward = known_rewards(rewards, theirs)
    count, value = prefix_values(tree, reward, theirs)
    value = value.nan_to_num(0.0)
    return shrunken_values(count[mine], value[mine], reward[mine], kappa, leave_one_out=False)[:, :-1]


# -- the model ---------------------------------------------------------------------------------------------------------
class Bench:
    """Hold a checkpoint and a task's validation prompts, and sample and score as the recipe does."""

    def __init__(self, args):
        torch.set_num_threads(args.threads)
        given = [f"task=asterisk_{args.task}"]
        self.config = config = load_recipe(ROOT / "recipes/qa.yaml", given)
        lora = peft.LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules=config.lora_layers)
        torch.manual_seed(args.seed)  # of a fresh adapter's A
        self.policy = Policy.load(
            resolve_model(config.model),
            lora=lora,
            adapter=args.adapter,
            dtype=config.dtype,
            temperature=config.temperature,
        )
        self.policy.token_budget = config.token_budget
        self.reward = RewardSum(config.rewards)
        rows = load(config.task, args.split).to_list()
        random.Random(args.seed).shuffle(rows)
        self.rows, self.first = rows[args.skip : args.skip + args.prompts], args.skip
        self.seed = args.seed
        self.facts = {
            "task": args.task,
            "checkpoint": args.name or ("start" if args.adapter is None else Path(args.adapter).as_posix()),
            "split": args.split,
            "seed": args.seed,
            "machine": f"{platform.machine()}, {args.threads} thread, torch {torch.__version__}",
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
            drawn = _choose(logits, row, config.top_p, False, draws)[0]
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


def append(name, record):
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"resampling_{name}.jsonl").open("a") as lines:
        lines.write(json.dumps(record, separators=(",", ":")) + "\n")


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


# -- A: values ---------------------------------------------------------------------------------------------------------
def values(args):
    """Re-sample from every prefix of one group per prompt (`--only-boundaries`: from those at boundaries)."""
    bench = Bench(args)
    for index, row in bounded(bench, args.minutes):
        prompt = bench.embedded(row)
        group = bench.groups([prompt], [index], bench.config.num_completions, 0)[0]
        tree, rewards = group.tree, bench.rewards(row, group.texts(bench.policy.tokenizer))
        with torch.no_grad():
            entropy = bench.policy([prompt], [tree]).entropies[0]
        cuts = boundary_choices(group, entropy, step_generator(bench.seed, index, 1))
        root = tree.num_nodes
        wanted = {root, *range(root)}
        if args.only_boundaries:
            wanted = {root}
            for choice in cuts.values():
                for t in {t for one in choice for t in one.tolist()}:
                    wanted |= {root if node < 0 else node for node in tree.prefix_group(t).tolist()}
                    wanted |= {root if node < 0 else node for node in tree.prefix_group(t + 1).tolist()}
        generator = step_generator(bench.seed, index, 2)
        value, error, spread = bench.true_values(row, prompt, tree, rewards, wanted, args.samples, generator)
        mean = rewards.mean()
        record = {**bench.facts, "id": row["id"], "samples": args.samples, "completions": len(rewards)}
        record |= {"reward": float(mean), "reward_variance": spread[root], "root": short([value[root], error[root]])}
        known = [node for node in sorted(wanted) if node != root and not tree.is_leaf[node]]
        estimate = tree.node_mean(rewards)
        record["nodes"] = [
            [int(tree.depth[n]) + 1, int(tree.count[n]), *short([estimate[n], value[n], error[n], spread[n]])]
            for n in known
        ]
        record["root_mean"] = float(mean)
        leaf_nodes = {n for t in cuts["surprisal"][0].tolist() for n in tree.prefix_group(t).tolist()}
        record["leaf_nodes"] = [i for i, n in enumerate(known) if n in leaf_nodes and tree.count[n] >= 2]
        record["choices"] = {
            name: average([separation(tree, t, value, error) for one in draws for t in one.tolist()])
            for name, draws in cuts.items()
        }
        if not args.only_boundaries:
            record |= token_sums(group, rewards, value, error)
        append("values", record)


def boundary_choices(group, entropy, generator):
    """Return way of choosing → list of boundaries (B,); several draws of the random one."""
    options = {"max_boundaries": BUDGET}
    return {
        "surprisal": [select_boundaries(group.surprisal, group.lengths, **options)],
        "entropy": [entropy_boundaries(entropy, group.lengths, **options)],
        "even": [even_boundaries(group.lengths, **options)],
        "random": [random_boundaries(group.lengths, generator=generator, **options) for _ in range(DRAWS)],
    }


def separation(tree, t, value, error):
    """Return what a boundary exposes, as the credit laboratory defines it, with the noise of values taken off.

    children: variance of the true value of the prefix through token t within each set of two or more completions that
    share the t tokens before, summed over all completions (0 for those alone) and divided by their number. nodes:
    variance over completions of the true value of the prefix before t. fires: whether there is such a set.
    """
    before, through = tree.prefix_group(t).numpy(), tree.prefix_group(t + 1).numpy()
    within, fires = 0.0, False
    for node in np.unique(before):
        members = through[before == node]
        if len(members) >= 2:
            fires = True
            within += len(members) / len(before) * between_variance(members, value[members], error[members])
    nodes = between_variance(before, value[before], error[before])
    return {"children": within, "nodes": nodes, "fires": float(fires), "position": float(t)}


def average(rows):
    """Return the mean of each key over dictionaries, with their number; None without any."""
    if not rows:
        return None
    return {key: float(f"{np.mean([row[key] for row in rows]):.6g}") for key in rows[0]} | {"boundaries": len(rows)}


def token_sums(group, rewards, value, error):
    """Return sums over tokens: of rules' advantages with the true Q − V, and of baselines' errors against the true V.

    credit: rule → [Σ a·x, Σ a², Σ x², noise in Σ x²] with a the advantage and x = V(prefix through) − V(prefix before),
    as moments about 0. baseline: name → Σ (b − V)², noise taken off. Tokens whose child has one value are exact.
    """
    tree = group.tree
    real = (tree.node >= 0).numpy()
    node = np.where(real, tree.node.numpy(), tree.num_nodes)
    before = np.concatenate([np.full((len(node), 1), tree.num_nodes), node[:, :-1]], 1)
    truth, noise = (value[node] - value[before])[real], (error[node] + error[before])[real]
    result = {"tokens": int(real.sum()), "credit": {}, "baseline": {}}
    for name, rule in {**MASS_RULES, "spo": credit_rule("spo")}.items():
        a = rule(tree, rewards, surprisal=group.surprisal).numpy()[real]
        result["credit"][name] = short([(a * truth).sum(), (a * a).sum(), (truth * truth).sum(), noise.sum()])
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    count, mean = prefix_values(tree, reward, scored)
    others = (reward.sum() - reward) / (len(reward) - 1)
    baselines = {"mean of all": reward.mean().expand_as(node_like(tree)), "mean of the others": others[:, None]}
    for kappa in (0.0, 1.0, 4.0):
        for own in (True, False):
            v = shrunken_values(count, mean, reward, kappa, leave_one_out=not own)[:, :-1]
            baselines[f"shrunken {'own in' if own else 'own out'}, kappa={kappa:g}"] = v
    for name, b in baselines.items():
        b = b.expand_as(node_like(tree)).numpy()[real]
        result["baseline"][name] = float(f"{((b - value[before][real]) ** 2 - error[before][real]).sum():.6g}")
    return result


def node_like(tree):
    return torch.empty(tree.node.shape)


# -- B: gradients ------------------------------------------------------------------------------------------------------
def gradients(args):
    """Estimate each rule's gradient from each of many groups of a prompt, and hold it against the other groups'."""
    bench = Bench(args)
    policy, size = bench.policy.eval(), bench.config.num_completions
    record_facts = {**bench.facts, "groups": args.groups, "part": args.part}
    parameters = upper_half(policy) if args.part == "upper half" else []
    for index, row in bounded(bench, args.minutes):
        prompt = bench.embedded(row)
        together = bench.groups([prompt], [index], args.groups * size, 3)[0]
        rewards = bench.rewards(row, together.texts(policy.tokenizer))
        record = {**record_facts, "id": row["id"], "reward": float(rewards.mean()), "reward_std": float(rewards.std())}
        if bool((rewards == rewards[0]).all()):
            append("gradients", record | {"rules": None})
            continue
        credits, factors, facts = [], [], []
        for g in range(args.groups):
            mine = slice(g * size, (g + 1) * size)
            group = together.select(list(range(mine.start, mine.stop)))
            more = {} if parameters else MORE_RULES
            given, scale = credits_of(group, rewards[mine], together.tree, rewards, mine, bench.config, more)
            credits.append((group, given))
            factors.append(scale)
            facts.append(fork_facts(group, rewards[mine]))
        if parameters:
            made = [gradients_of(policy, parameters, prompt, group.tree, given) for group, given in credits]
        else:
            made = last_layer_gradients(policy, prompt, together.tree, [given for _, given in credits])
        stacked = {name: torch.stack([one[name] for one in made]) for name in made[0]}
        truth = stacked[TRUTH].float()
        record["truth_square"] = float(f"{mean_square(truth):.6g}")
        record["groups_facts"] = facts
        record["rules"] = {name: judged(each.float(), truth) for name, each in stacked.items()}
        for name in FACTORS:
            factor = torch.tensor([one[name] for one in factors])
            record["rules"][name] = judged(truth * factor[:, None], truth)
        append("gradients", record)


def upper_half(policy):
    """Return the B matrices of the adapters in the upper half of the layers, and freeze everything else."""
    chosen, first = [], policy.text_config.num_hidden_layers // 2
    for name, parameter in policy.named_parameters():
        upper = "lora_B" in name and int(name.split(".layers.")[1].split(".")[0]) >= first
        parameter.requires_grad_(upper)
        chosen += [parameter] if upper else []
    return chosen


def credits_of(group, rewards, together, all_rewards, mine, config, more):
    """Return name → (K, T) weight times advantage of every token, and for `FACTORS` their multiple of RLOO's.

    The weights are those of the true policy gradient, all tokens alike (reduction constant); the names that end in
    completion_mean have the recipe's, each token divided by its completion's length.
    """
    tree = group.tree
    mask = tree.node >= 0
    alike = token_weights([mask], reduction="constant", constant_length=config.max_new_tokens)[0].double()
    by_length = token_weights([mask], reduction="completion_mean")[0].double()
    rules = {**RULES, **more}
    advantages = {name: rule(tree, rewards, surprisal=group.surprisal) for name, rule in rules.items()}
    result = {name: alike * advantage for name, advantage in advantages.items()}
    for name in ("rloo", "leaf"):
        result[f"{name}, completion_mean"] = by_length * advantages[name]
    width = tree.tokens.shape[1]
    baseline = others_baseline(together, all_rewards, mine)[:, :width]
    result[OTHERS] = alike * torch.where(mask, rewards.double()[:, None] - baseline, 0.0)
    if more:
        result[OTHERS_MEAN] = alike * torch.where(mask, (rewards.double() - baseline[0, 0])[:, None], 0.0)
    base, scale = advantages["rloo"], {}
    for name, rule in FACTORS.items():
        advantage = rule(tree, rewards)
        factor = float((advantage * base).sum() / base.square().sum()) if bool(base.any()) else 0.0
        torch.testing.assert_close(advantage, factor * base)
        scale[name] = factor
    return result, scale


def gradients_of(policy, parameters, prompt, tree, credits):
    """Return name → (D,) gradient Σ credit · ∇log π, in bfloat16 to save memory: one forward, one backward each."""
    size = sum(p.numel() for p in parameters)
    found = {name: torch.zeros(size, dtype=torch.bfloat16) for name in credits}
    if any(bool(credit.any()) for credit in credits.values()):
        log_probs = policy([prompt], [tree]).log_probs[0]
        for name, credit in credits.items():
            if bool(credit.any()):
                weight = credit.to(log_probs.dtype)
                parts = torch.autograd.grad(log_probs, parameters, grad_outputs=weight, retain_graph=True)
                found[name] = torch.cat([part.flatten() for part in parts]).bfloat16()
    return found


def last_layer_gradients(policy, prompt, tree, credits):
    """Return for every group name → its gradient in coordinates that keep all inner products, without a backward each.

    Args:
        tree: prefix tree of all groups together, in order.
        credits: per group name → (K, T).
    """
    gram = last_layer_gram(policy, prompt, tree)
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp_min(0).sqrt()
    made, first = [], 0
    for given in credits:
        one = {}
        for name, credit in given.items():
            node = tree.node[first : first + len(credit)]
            real = node >= 0
            by_node = torch.zeros(tree.num_nodes, dtype=torch.float64)
            one[name] = by_node.index_add_(0, node[real], credit.double()[real]) @ root
        made.append(one)
        first += len(credit)
    return made


def last_layer_gram(policy, prompt, tree, rows=128):
    """Return (N, N) ⟨s_a, s_b⟩, s_n = ∇ log π of node n in the B matrices of the last layer's o, gate, up and down.

    What these adapters do to a token's hidden state reaches no other position, so s_n is an outer product δ_n ⊗ a_n for
    each adapter, of the gradient at its output and its rank-r input. For decoders built as Llama's.
    """
    layer, seen = policy.language_model.layers[-1], {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen.update(residual=args[0])),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.update(context=args[0])),
    ]
    packed = pack(prompt.length, tree)
    with torch.no_grad():
        LAYOUTS["tree"].hidden(policy, [prompt], [packed], [tree])
    for hook in hooks:
        hook.remove()
    where = packed.parents[packed.parent_of]
    modules = [layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    gram = torch.zeros(tree.num_nodes, tree.num_nodes, dtype=torch.float64)
    inputs, outputs = [[] for _ in modules], [[] for _ in modules]
    for at in where.split(rows):
        kept, first = [], sum(len(part) for part in inputs[0])
        hooks = [
            module.lora_B["default"].register_forward_hook(
                lambda _, args, output, kept=kept: kept.append((args[0], output))
            )
            for module in modules
        ]
        with policy.precision():
            hidden = seen["residual"][0, at] + layer.self_attn.o_proj(seen["context"][0, at])
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            hidden = policy.language_model.norm(hidden).to(policy.base.dtype)
        for hook in hooks:
            hook.remove()
        tokens = tree.token[first : first + len(at)]
        log_probs = policy.logits(hidden).log_softmax(-1).gather(1, tokens[:, None])
        slopes = torch.autograd.grad(log_probs.sum(), [output for _, output in kept])
        for i, ((given, _), slope) in enumerate(zip(kept, slopes, strict=True)):
            inputs[i].append(given.detach().double())
            outputs[i].append(slope.double())
    for given, slope in zip(inputs, outputs, strict=True):
        given, slope = torch.cat(given), torch.cat(slope)
        gram += (given @ given.T) * (slope @ slope.T)
    return gram


def judged(estimates, truth):
    """Return what the record keeps of one rule: per group cosine, dot and squared norm; and |E g|²."""
    cosine, dot, square = leave_one_out(estimates, truth)
    kept = {"cosine": short(cosine), "dot": short(dot), "square": short(square)}
    return kept | {"mean_square": float(f"{mean_square(estimates):.6g}")}


def fork_facts(group, rewards):
    """Return [boundaries, how many fire, how many are usable] at LEAF's boundaries."""
    cuts = select_boundaries(group.surprisal, group.lengths, max_boundaries=BUDGET)
    found = forks(group.tree, rewards, cuts)
    return [len(found), sum(fork.fires for fork in found), sum(fork.usable for fork in found)]


# -- C: forkability ----------------------------------------------------------------------------------------------------
def forkability(args):
    """Record forks at LEAF's boundaries and every rule's credit mass, one group per prompt."""
    bench, waiting = Bench(args), []
    for index, row in bounded(bench, args.minutes):
        waiting.append((index, row))
        if len(waiting) < PROMPTS_AT_ONCE and row is not bench.rows[-1]:
            continue
        prompts = bench.policy.embed([row for _, row in waiting])
        groups = bench.groups(prompts, [index for index, _ in waiting], bench.config.num_completions, 0)
        for (_, one), group in zip(waiting, groups, strict=True):
            append("forkability", fork_record(bench, one, group))
        waiting = []


def fork_record(bench, row, group):
    tree, rewards = group.tree, bench.rewards(row, group.texts(bench.policy.tokenizer))
    cuts = select_boundaries(group.surprisal, group.lengths, max_boundaries=BUDGET)
    record = {**bench.facts, "id": row["id"], "rewards": short(rewards, 4), "lengths": group.lengths.tolist()}
    record["distinct"] = round(tree.num_nodes / int(group.lengths.sum()), 4)
    record["forks"] = [
        [f.position, f.fires, f.usable, list(f.sizes), short(f.spreads, 3)] for f in forks(tree, rewards, cuts)
    ]
    record["mass"] = {}
    for name, rule in MASS_RULES.items():
        advantages = rule(tree, rewards, surprisal=group.surprisal)
        mass = credit_mass(advantages, group.lengths), credit_mass_by_position(advantages, group.lengths)
        record["mass"][name] = [short(part, 4) for part in mass]
    return record


# -- tables ------------------------------------------------------------------------------------------------------------
def table(args):
    """Print what the records say, in Markdown; intervals are 95 % bootstrap intervals over prompts."""
    for name, show in (("values", show_values), ("gradients", show_gradients), ("forkability", show_forkability)):
        file = RESULTS / f"resampling_{name}.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        keys = [(r["task"], r["checkpoint"], r.get("split", "validation"), r.get("part", "")) for r in records]
        for key in dict.fromkeys(keys):
            mine = [r for r, its in zip(records, keys, strict=True) if its == key]
            print(f"\n## {name}: {' '.join(key)}: {len(mine)} prompts, seed {mine[0]['seed']}")
            show(mine)


def interval(statistic, count, digits=3, sign=""):
    middle, low, high = bootstrap(statistic, count)
    return f"{middle:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def ratio(above, below):
    """Return the statistic Σ above / Σ below over the prompts drawn."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    return lambda i: above[i].sum() / below[i].sum() if below[i].sum() != 0 else np.nan


def show_values(records):
    variance = np.array([r["reward_variance"] for r in records])
    print(f"reward {np.mean([r['reward'] for r in records]):.3f}, variance {variance.mean():.4f} (mean over prompts)")
    bins = {"1": (1, 1), "2": (2, 2), "3-4": (3, 4), "5-7": (5, 7), "8": (8, 8)}
    picks = {
        f"n {k}": lambda r, low=low, high=high: [x for x in r["nodes"] if low <= x[1] <= high]
        for k, (low, high) in bins.items()
    }
    picks["LEAF's nodes"] = lambda r: [r["nodes"][i] for i in r["leaf_nodes"]]
    print("| nodes | number | bias of V̂ | squared error of V̂ | predicted σ²/n | squared error of the root's mean |")
    print("|---|---|---|---|---|---|")
    for name, pick in picks.items():
        rows = [[x for x in pick(r) if x[3] is not None] for r in records]
        size = np.array([len(nodes) for nodes in rows])
        if not size.sum():
            continue
        bias = [sum(x[2] - x[3] for x in nodes) for nodes in rows]
        error = [sum((x[2] - x[3]) ** 2 - x[4] for x in nodes) for nodes in rows]
        predicted = [sum(x[5] / x[1] for x in nodes) for nodes in rows]
        root = [sum((r["root_mean"] - x[3]) ** 2 - x[4] for x in nodes) for r, nodes in zip(records, rows, strict=True)]
        cells = [
            interval(ratio(one, size), len(rows), digits)
            for one, digits in ((bias, 3), (error, 4), (predicted, 4), (root, 4))
        ]
        print(f"| {name} | {size.sum()} | {' | '.join(cells)} |")
    print("\n| boundaries | position | fire | children / reward variance | minus random | nodes | minus random |")
    print("|---|---|---|---|---|---|---|")
    with_cuts = [r for r in records if all(r["choices"].values())]
    unit = [r["reward_variance"] for r in with_cuts]
    for name in ("surprisal", "entropy", "even", "random"):
        mine = [r["choices"][name] for r in with_cuts]
        cells = [f"{np.mean([m[key] for m in mine]):.2f}" for key in ("position", "fires")]
        for key in ("children", "nodes"):
            cells.append(interval(ratio([m[key] for m in mine], unit), len(mine)))
            minus = [m[key] - r["choices"]["random"][key] for m, r in zip(mine, with_cuts, strict=True)]
            cells.append("" if name == "random" else interval(ratio(minus, unit), len(mine), sign="+"))
        print(f"| {name} | {' | '.join(cells)} |")
    whole = [r for r in records if "credit" in r]
    if not whole:
        return
    print("\n| rule | correlation of its advantages with the true Q − V (noise of Q − V taken off) |\n|---|---|")
    for rule in whole[0]["credit"]:
        sums = np.array([r["credit"][rule] for r in whole])
        print(f"| {rule} | {interval(lambda i, s=sums: correlation(s[i].sum(0)), len(whole))} |")
    print("\n| baseline | mean squared distance from the true V(prefix), per token / reward variance |\n|---|---|")
    tokens = np.array([r["tokens"] * r["reward_variance"] for r in whole])
    for name in whole[0]["baseline"]:
        print(f"| {name} | {interval(ratio([r['baseline'][name] for r in whole], tokens), len(whole))} |")


def correlation(sums):
    """Return Σ a x / √(Σ a² · (Σ x² − noise)) of the sums that `token_sums` keeps."""
    return sums[0] / np.sqrt(sums[1] * (sums[2] - sums[3])) if sums[1] > 0 and sums[2] > sums[3] else np.nan


def show_gradients(records):
    told = [r for r in records if r["rules"] is not None]
    print(f"{len(records) - len(told)} prompts whose completions all earned the same are left out")
    groups = len(told[0]["rules"][TRUTH]["cosine"])
    zero = np.mean([[square == 0 for square in r["rules"][TRUTH]["square"]] for r in told])
    print(f"{groups} groups a prompt; {zero:.0%} of the groups have equal rewards")
    base, count = moments(told, TRUTH), len(told)
    print(
        "| rule | cosine | minus GRPO | minus GRPO, unequal rewards | without noise in the truth | "
        "efficiency / RLOO's | mean's cosine | noise |\n|---|---|---|---|---|---|---|---|"
    )
    for rule in told[0]["rules"]:
        m = moments(told, rule)
        cells = [interval(lambda i, m=m: m["cosine"][i].mean(), count)]
        cells.append(interval(lambda i, m=m: (m["cosine"] - base["cosine"])[i].mean(), count, 4, "+"))
        alive = [[square > 0 for square in r["rules"][TRUTH]["square"]] for r in told]
        minus = [np.subtract(r["rules"][rule]["cosine"], r["rules"][TRUTH]["cosine"]) for r in told]
        sums = [one[keep].sum() for one, keep in zip(minus, alive, strict=True)]
        cells.append(interval(ratio(sums, [sum(keep) for keep in alive]), count, 4, "+"))
        cells.append(
            interval(lambda i, m=m: m["dot"][i].sum() / np.sqrt(m["square"][i].sum() * m["truth"][i].sum()), count)
        )
        cells.append(interval(lambda i, m=m: efficiency(m, i) / efficiency(base, i), count))
        cells.append(
            interval(lambda i, m=m: m["dot"][i].sum() / np.sqrt(m["mean_square"][i].sum() * m["truth"][i].sum()), count)
        )
        cells.append(f"{(m['square'].sum() - m['mean_square'].sum()) * m['truth'].sum() / m['dot'].sum() ** 2:.2f}")
        print(f"| {rule} | {' | '.join(cells)} |")
    for rule in ("leaf", "leaf sqrt_count=false", "tempo", "shrunken"):
        show_by_forks(told, rule)


def moments(records, rule):
    """Return arrays over prompts: mean cosine, dot and squared norm of a group, |E g|² and |g*|² without noise."""
    rows = [r["rules"][rule] for r in records]
    result = {key: np.array([np.mean(row[key]) for row in rows]) for key in ("cosine", "dot", "square")}
    result["mean_square"] = np.array([row["mean_square"] for row in rows])
    return result | {"truth": np.array([r["truth_square"] for r in records])}


def efficiency(m, i):
    """Return ⟨E g, g*⟩² / E|g|², summed over prompts: the gain of one group's step at the best common step size."""
    return m["dot"][i].sum() ** 2 / m["square"][i].sum()


def show_by_forks(records, rule):
    """Print the rule's cosine minus GRPO's with and without usable forks; groups with equal rewards are left out."""
    sums = np.zeros((len(records), 4))
    rate, gain = np.zeros(len(records)), np.zeros(len(records))
    for p, r in enumerate(records):
        mine, base = r["rules"][rule], r["rules"][TRUTH]
        rows = [
            (f[2] / max(f[0], 1), a - b, s > 0)
            for f, a, b, s in zip(r["groups_facts"], mine["cosine"], base["cosine"], base["square"], strict=True)
        ]
        rows = [(usable, minus) for usable, minus, alive in rows if alive]
        rate[p], gain[p] = np.mean(rows, 0) if rows else (np.nan, np.nan)
        for usable, minus in rows:
            sums[p] += [minus, 1, 0, 0] if usable > 0 else [0, 0, minus, 1]
    known = ~np.isnan(rate)
    sums, rate, gain = sums[known], rate[known], gain[known]
    with_forks, without = ratio(sums[:, 0], sums[:, 1]), ratio(sums[:, 2], sums[:, 3])
    count = len(sums)
    print(f"\n{rule} minus GRPO, cosine, {count} prompts, groups whose rewards differ:")
    print(f"- {int(sums[:, 1].sum())} groups with a usable fork: {interval(with_forks, count, 4, '+')}")
    print(f"- {int(sums[:, 3].sum())} groups without: {interval(without, count, 4, '+')}")
    print(f"- difference: {interval(lambda i: with_forks(i) - without(i), count, 4, '+')}")
    spread = interval(lambda i: np.corrcoef(rate[i], gain[i])[0, 1] if len(set(i)) > 2 else np.nan, count, 2, "+")
    print(f"- correlation over prompts of the usable rate with the difference to GRPO: {spread}")


def show_forkability(records):
    found = [Fork(f[0], f[1], f[2], tuple(f[3]), tuple(f[4])) for r in records for f in r["forks"]]
    same = np.mean([len(set(r["rewards"])) == 1 for r in records])
    lengths = np.mean([np.mean(r["lengths"]) for r in records])
    reward, distinct = np.mean([np.mean(r["rewards"]) for r in records]), np.mean([r["distinct"] for r in records])
    print(f"reward {reward:.3f}, equal rewards {same:.0%}, length {lengths:.1f}, distinct {distinct:.2f}")
    stretches = {"all": fork_rates(found), **fork_rates_by_position(found)}
    for where, rates in stretches.items():
        if rates["boundaries"]:
            cells = [
                f"{rates[f'{k}_rate']:.3f} ({rates[f'{k}_interval'][0]:.3f} to {rates[f'{k}_interval'][1]:.3f})"
                for k in ("fire", "usable")
            ]
            cells += [f"{rates['group_size']:.2f}", f"{rates['reward_spread']:.3f}"]
            print(f"| {where} | {rates['boundaries']} | {' | '.join(cells)} |")
    for rule in records[0]["mass"]:
        rows = [r["mass"][rule] for r in records if sum(r["mass"][rule][0]) > 0]
        parts = [np.mean([row[k] for row in rows], 0) for k in (0, 1)]
        shares = [" ".join(f"{x:.3f}" for x in part) for part in parts]
        print(f"| {rule} | {shares[0]} | {shares[1]} | {len(rows)} groups |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command in (values, gradients, forkability):
        one = commands.add_parser(command.__name__, help=command.__doc__)
        one.set_defaults(command=command)
        one.add_argument("--task", choices=("qa", "fr", "it"), default="qa")
        one.add_argument("--split", default="validation", help="whose prompts")
        one.add_argument("--adapter", default=None, help="directory of a saved adapter; default the starting model")
        one.add_argument("--name", default=None, help="what the records call the checkpoint")
        one.add_argument("--prompts", type=int, default=40)
        one.add_argument("--skip", type=int, default=0, help="prompts passed over, as when a run is taken up again")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--threads", type=int, default=1)
        one.add_argument("--minutes", type=float, default=40.0)
        if command is values:
            one.add_argument("--samples", type=int, default=24, help="continuations from each prefix")
            one.add_argument("--only-boundaries", action="store_true")
        if command is gradients:
            one.add_argument("--groups", type=int, default=16)
            one.add_argument(
                "--part", choices=("last layer", "upper half"), default="last layer", help="of the adapter"
            )
    commands.add_parser("table", help=table.__doc__).set_defaults(command=table)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()

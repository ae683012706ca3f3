"""Gradients of each rule from one group, held against the mean of an unbiased rule over the other groups."""

import torch

from benchmarks.resampling.bench import (
    FACTORS,
    MORE_RULES,
    OTHERS,
    OTHERS_MEAN,
    RULES,
    TRUTH,
    Bench,
    bounded,
    file_of,
    short,
)
from benchmarks.resampling.estimators import leave_one_out, mean_square, others_baseline
from benchmarks.resampling.forkability import fork_facts
from leaf.credit import token_weights
from leaf.files import append_row
from leaf.model.packing import pack
from leaf.model.scoring import LAYOUTS, score


def gradients(args):
    """Estimate each rule's gradient from each of many groups of a prompt, and hold it against the other groups'."""
    bench = Bench(args)
    policy, size = bench.policy.eval(), bench.config.num_completions
    record_facts = {**bench.facts, "groups": args.groups, "part": args.part}
    layers = policy.text_config.num_hidden_layers
    parameters = adapter_parameters(policy, layers // 2) if args.part == "upper half" else []
    for index, row in bounded(bench, args.minutes):
        prompt = bench.embedded(row)
        together = bench.groups([prompt], [index], args.groups * size, 3)[0]
        rewards = bench.rewards(row, together.texts(policy.tokenizer))
        record = {**record_facts, "id": row["id"], "reward": float(rewards.mean()), "reward_std": float(rewards.std())}
        if bool((rewards == rewards[0]).all()):
            append_row(file_of("gradients"), record | {"rules": None})
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
        append_row(file_of("gradients"), record)


def adapter_parameters(policy, first=0):
    """Return the B matrices of the adapters from layer `first` up, and freeze everything else."""
    chosen = []
    for name, parameter in policy.named_parameters():
        wanted = "lora_B" in name and int(name.split(".layers.")[1].split(".")[0]) >= first
        parameter.requires_grad_(wanted)
        chosen += [parameter] if wanted else []
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
        log_probs = score(policy, [prompt], [tree]).log_probs[0]
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
        first += len(next(iter(given.values())))
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
        LAYOUTS["tree"].hidden(policy, [prompt], [packed], [None])
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

"""Arms a to c: leaf, and transformers as it comes with K copies or one at a time."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.step.bench import KL_COEF, RATE, Bench, Cell, Meter, peft_defaults
from leaf.credit import credit_rule, policy_loss, token_weights
from leaf.model.below import usable
from leaf.model.draws import step_generator
from leaf.model.kept import finish, taken
from leaf.model.sampling import Group, sample
from leaf.model.scoring import batches, score


@dataclass(frozen=True)
class Work:
    """Hold what the updates of a, b and c run on: advantages and loss weights (K, R) per group."""

    groups: list[Group]
    advantages: list[Tensor]
    weights: list[Tensor]


def leaf_step(bench: Bench, cell: Cell, rows: list[dict[str, Any]], meter: Meter) -> Work:
    """Run arm a."""
    policy, device = bench.policy, torch.device(bench.args.device)
    with meter.phase("sample"):
        groups = sample(
            policy,
            policy.embed(rows),
            num_completions=cell.completions,
            max_new_tokens=cell.length,
            temperature=1.0,
            top_p=bench.args.top_p,
            generator=step_generator(0, 0),
            keep_prompts=True,
            keep_entries=True,
        )
    with meter.phase("credit"):
        work = leaf_credit(groups, device)
    with meter.phase("update"):
        leaf_update(bench, work)
    return work


def leaf_credit(groups: list[Group], device: torch.device) -> Work:
    """Credit a's groups for random rewards."""
    generator = torch.Generator().manual_seed(1)
    rewards = [torch.rand(len(group.lengths), generator=generator, dtype=torch.float64) for group in groups]
    rule = credit_rule("leaf")
    advantages = [
        rule(group.tree, reward, surprisal=group.surprisal).float().to(device)
        for group, reward in zip(groups, rewards, strict=True)
    ]
    return Work(groups, advantages, token_weights([(group.tree.node >= 0).to(device) for group in groups]))


def leaf_update(bench: Bench, work: Work) -> None:
    """Run a's reference and update."""
    policy, device = bench.policy, torch.device(bench.args.device)
    prompts, trees = [g.prompt for g in work.groups], [g.tree for g in work.groups]
    with torch.no_grad(), policy.reference():
        reference = score(policy, prompts, trees, entries=[g.entry for g in work.groups]).log_probs
    with taken(policy, [(group.kept, group.tree) for group in work.groups]) as kept:
        for batch in batches(policy, prompts, trees, kept):
            run = None if kept is None else [kept[i] for i in batch]
            entries = usable([work.groups[i].entry for i in batch])
            scores = score(policy, [prompts[i] for i in batch], [trees[i] for i in batch], run, entries)
            loss = torch.zeros((), device=device)
            for new, i in zip(scores.log_probs, batch, strict=True):
                mask = (trees[i].node >= 0).to(device)
                loss = loss + _loss(new, reference[i], work.advantages[i], mask, work.weights[i])
            loss.backward()
        finish(kept or [])
    _finish(bench, "leaf")


def _loss(new: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    return policy_loss(new, new.detach(), advantages, mask, weights=weights, ref_logp=reference, kl_coef=KL_COEF)[0]


def _finish(bench: Bench, arm: str) -> None:
    """Clip, step and clear the gradients, keeping a copy of them if asked."""
    if bench.keep:
        found = {name: p.grad for name, p in bench.parameters.items() if p.grad is not None}
        bench.gradients[arm] = {name: gradient.clone() for name, gradient in found.items()}
    torch.nn.utils.clip_grad_norm_(list(bench.parameters.values()), 1.0)
    bench.optimizer.step()
    bench.optimizer.zero_grad()


def stock_inputs(bench: Bench, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Run the processor as its model card does."""
    batch = bench.policy.processor(
        text=[row["rendered"] for row in rows],
        audio=[row["audio"]["array"] for row in rows],
        text_kwargs={"padding": True},
        audio_kwargs={"sampling_rate": RATE},
        return_tensors="pt",
    )
    found = {key: batch[key] for key in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    dtype = bench.base.dtype
    return {k: v.to(bench.args.device, dtype if v.is_floating_point() else None) for k, v in found.items()}


def stock_sample(bench: Bench, cell: Cell, rows: list[dict[str, Any]], meter: Meter) -> dict[str, Tensor]:
    """Sample as b and c do; return the processor's tensors."""
    torch.manual_seed(0)
    with meter.phase("sample"):
        inputs = stock_inputs(bench, rows)
        out = stock_generate(bench, cell, inputs)
    expected = (len(rows) * cell.completions, cell.prompt_tokens + cell.length)
    if out.shape != expected or any(value.shape[0] != len(rows) for value in inputs.values()):
        raise AssertionError(f"generate returned {tuple(out.shape)} for {expected}, or a prompt was cut in windows.")
    return inputs


def stock_generate(bench: Bench, cell: Cell, inputs: dict[str, Tensor]) -> Tensor:
    """Let transformers draw the completions of b and c."""
    with torch.no_grad(), peft_defaults(bench.policy):
        return bench.base.generate(
            **inputs,
            num_return_sequences=cell.completions,
            do_sample=True,
            temperature=1.0,
            top_p=bench.args.top_p,
            top_k=0,
            max_new_tokens=cell.length,
            min_new_tokens=cell.length,
        )


def stock_update(bench: Bench, inputs: dict[str, Tensor], work: Work, micro: int, arm: str) -> None:
    """Run the reference and update of b (`micro` K) or c (`micro` 1) on the tokens of a."""
    device = torch.device(bench.args.device)
    for i, group in enumerate(work.groups):
        prompt = {key: value[i : i + 1] for key, value in inputs.items()}
        for first in range(0, group.tokens.shape[0], micro):
            part = slice(first, first + micro)
            tokens = group.tokens[part].to(device)
            with torch.no_grad(), bench.policy.reference():
                reference = _stock_log_probs(bench, prompt, tokens)
            new = _stock_log_probs(bench, prompt, tokens)
            mask = torch.ones_like(tokens, dtype=torch.bool)
            _loss(new, reference, work.advantages[i][part], mask, work.weights[i][part]).backward()
    _finish(bench, arm)


def _stock_log_probs(bench: Bench, prompt: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Return (rows, R) log-probabilities of completions from copies of one prompt, audio included."""
    copies = {key: value.repeat_interleave(tokens.shape[0], 0) for key, value in prompt.items()}
    copies["input_ids"] = torch.cat([copies["input_ids"], tokens], 1)
    copies["attention_mask"] = torch.cat([copies["attention_mask"], torch.ones_like(tokens)], 1)
    # Positions, not a count: behind a slice (not contiguous) PyTorch's matmul copies the frozen head for every row.
    positions = torch.arange(prompt["input_ids"].shape[1] - 1, copies["input_ids"].shape[1] - 1, device=tokens.device)
    logits = bench.base(**copies, logits_to_keep=positions, use_cache=False).logits.float()
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)

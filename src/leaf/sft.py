"""Stage sft: supervised warm start on references, with the policy and the packed forward of stage rl."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from leaf.config import SftConfig
from leaf.credit.tree import PrefixTree
from leaf.errors import DataError
from leaf.evaluate import evaluate
from leaf.run import RunDirectory
from leaf.speech.policy import Policy
from leaf.training import batch_indices, build_optimizer, build_schedule, take


def reference_tree(policy: Policy, reference: str) -> PrefixTree:
    """Return the prefix tree of one completion: the reference and its end-of-sequence token."""
    if not reference.strip():
        raise DataError("A training row has an empty reference; supervised training needs a text to imitate.")
    tokens = policy.tokenizer(reference, add_special_tokens=False)["input_ids"] + [policy.eos_token_ids[0]]
    return PrefixTree.build(torch.tensor([tokens]), torch.tensor([len(tokens)]))


def sft_loss(policy: Policy, rows: list[dict[str, Any]]) -> Tensor:
    """Return the mean negative log-likelihood per reference token in nats."""
    trees = [reference_tree(policy, row["reference"]) for row in rows]
    scores = policy(policy.embed(rows), trees)
    total = torch.stack([log_probs.sum() for log_probs in scores.log_probs]).sum()
    return -total / sum(tree.num_nodes for tree in trees)


def sft(config: SftConfig, policy: Policy, train_rows, eval_rows, run: RunDirectory, report=print) -> dict[str, Any]:
    """Train adapter and (by recipe) projector on references.

    Writes metrics.jsonl, validation.jsonl, last/ (adapter) and projector.safetensors; returns the last validation.
    """
    groups = [{"params": [p for p in policy.parameters() if p.requires_grad]}]
    if config.train_projector:
        rate = config.projector_learning_rate or config.learning_rate
        groups.append({"params": policy.unfreeze_projector(), "lr": rate})
    parameters = [p for group in groups for p in group["params"]]
    optimizer = build_optimizer(groups, config)
    schedule = build_schedule(optimizer, config)
    started, scores = time.perf_counter(), {}
    for step in range(config.max_steps):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout: a function of seed and step
        policy.train()
        rows = take(train_rows, batch_indices(len(train_rows), config.batch_size, step, config.seed))
        loss = sft_loss(policy, rows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - started
        record = {"step": step + 1, "loss": loss.item(), "grad_norm": norm.item(), "seconds": seconds}
        run.append("metrics.jsonl", record | {"learning_rate": schedule.get_last_lr()[0]})
        if (step + 1) % 20 == 0:
            report(f"sft {step + 1}/{config.max_steps}  nll {loss.item():.3f}  {seconds:.0f} s")
        last = step + 1 == config.max_steps
        if last or (step + 1) % config.save_every == 0:
            run.replace_directory("last", policy.save_adapter)
            policy.save_projector(run.path / "projector.safetensors")
        if last or (config.eval_every and (step + 1) % config.eval_every == 0):
            policy.eval()
            rows = take(eval_rows, range(min(len(eval_rows), config.eval_items or len(eval_rows))))
            result = evaluate(policy, rows, greedy=True, max_new_tokens=config.max_new_tokens)
            scores = result.values()
            run.append("validation.jsonl", {"step": step + 1, **scores})
            report(f"sft {step + 1}/{config.max_steps}  " + "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))
    return scores

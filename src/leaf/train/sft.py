"""Stage sft: supervised warm start on references, with the policy and the packed forward of stage rl."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leaf.config import SftConfig
from leaf.credit.tree import PrefixTree
from leaf.data.rows import batch_indices, row_name, take
from leaf.errors import DataError
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.predict import Decoding
from leaf.evaluation.registry import Scoring, validation_metrics
from leaf.memory import within_memory
from leaf.model.family import encode_text
from leaf.model.policy import Policy
from leaf.model.projector import save_projector, unfreeze_projector
from leaf.model.prompts import audio_of
from leaf.model.scoring import batches, score
from leaf.runs.checkpoints import Checkpoints, check_space
from leaf.runs.directory import RunDirectory
from leaf.runs.skipped import MOST_SKIPPED, SkippedSteps
from leaf.train.schedule import build_optimizer, build_schedule, check_stage
from leaf.train.steps import take_steps


def share_audio(policy: Policy, rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group rows that begin alike: same text up to the audio and same audio. Each group is one packed row."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        head, _ = _split_prompt(policy, row)
        groups.setdefault((str(head), _same(audio_of(row))), []).append(row)
    return list(groups.values())


def _same(audio: Any) -> str:
    """Return what tells recordings apart: paths as they are, waveforms by all of their samples."""
    if isinstance(audio, Mapping):
        wave = np.ascontiguousarray(audio["array"])
        return f"{audio['sampling_rate']} {wave.dtype} {wave.shape} {sha256(wave.tobytes()).hexdigest()}"
    return str([audio] if isinstance(audio, str | Path) else [str(name) for name in audio])


def _split_prompt(policy: Policy, row: dict[str, Any]) -> tuple[str, str]:
    """Cut the rendered prompt behind its audio placeholder; a family that takes conversations only is not cut."""
    if policy.family.encode is not encode_text:
        return row["prompt"], ""
    head, placeholder, tail = policy.render(row["prompt"]).partition(policy.family.audio_token)
    return head + placeholder, tail


def sft_gradient(policy: Policy, groups: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Add the gradient of the mean negative log-likelihood per reference token, and return that mean in nats.

    The rows of a group share their audio: what follows it (question and reference) is a branch of one prefix tree, so
    the audio is encoded and attended to once. Only reference tokens and their end token count. Every forward within
    the token budget is followed by its backward, so one graph stands at a time; where the projector is trained, the
    gradients that arrive at the prompts go through it last, all together.
    """
    heads, trees, masks = [], [], []
    for rows in groups:
        heads.append({**rows[0], "prompt": _split_prompt(policy, rows[0])[0]})
        questions = [policy.token_ids(_split_prompt(policy, row)[1]) for row in rows]
        answers = [[*policy.token_ids(_reference(row)), policy.eos_token_ids[0]] for row in rows]
        lengths = torch.tensor([len(q) + len(a) for q, a in zip(questions, answers, strict=True)])
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            tokens[i, : lengths[i]] = torch.tensor(question + answer)
            mask[i, len(question) : lengths[i]] = True
        trees.append(PrefixTree.build(tokens, lengths))
        masks.append(mask.to(policy.device))
    count = sum(int(mask.sum()) for mask in masks)
    prompts = policy.embed(heads)
    cut = [replace(p, embeddings=p.embeddings.detach().requires_grad_(p.embeddings.requires_grad)) for p in prompts]
    loss = 0.0
    for batch in batches(policy, cut, trees):
        scores = score(policy, [cut[i] for i in batch], [trees[i] for i in batch])
        parts = [(values * masks[i]).sum() for i, values in zip(batch, scores.log_probs, strict=True)]
        part = -torch.stack(parts).sum() / count
        part.backward()
        loss += part.item()
    if any(prompt.embeddings.requires_grad for prompt in prompts):
        torch.autograd.backward([p.embeddings for p in prompts], [p.embeddings.grad for p in cut])
    return loss


def _reference(row: dict[str, Any]) -> str:
    if not row["reference"].strip():
        raise DataError("A training row has an empty reference; supervised training needs a text to imitate.")
    return row["reference"]


def sft(
    config: SftConfig,
    policy: Policy,
    train_rows: Any,
    eval_rows: Any,
    run: RunDirectory,
    report: Callable[[str], None] = print,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Train adapter and (by recipe) projector on references.

    Writes metrics.jsonl, validation.jsonl, last/ (adapter), projector.safetensors and checkpoints/; returns the last
    validation. `resume` goes on from the newest intact checkpoint.

    Raises:
        RunInterrupted: SIGTERM, SIGUSR1 or Ctrl-C came, and the run is saved; only in the main thread.
    """
    check_stage(config)
    trained: list[dict[str, Any]] = [{"params": [p for p in policy.parameters() if p.requires_grad]}]
    if config.train_projector:
        own = config.projector_learning_rate
        rate = config.learning_rate if own is None else own
        trained.append({"params": unfreeze_projector(policy), "lr": rate})
    parameters = [p for group in trained for p in group["params"]]
    optimizer = build_optimizer(trained, config)
    schedule = build_schedule(optimizer, config)
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    facts = {"training rows": len(train_rows)}
    checkpoints = Checkpoints(run, config, named, optimizer, schedule, facts=facts, say=report)
    check_space(run.path, named, config.keep_checkpoints, have=len(checkpoints.steps()))
    groups = share_audio(policy, take(train_rows, range(len(train_rows))))
    report(f"sft: {len(train_rows)} rows on {len(groups)} recordings, {config.batch_size} recordings a step")
    started, scores = time.perf_counter(), {}
    skips = SkippedSteps(MOST_SKIPPED, policy.base.dtype, report)

    def validate(step: int) -> None:
        policy.eval()
        rows = take(eval_rows, range(min(len(eval_rows), config.eval_items or len(eval_rows))))
        decoding = Decoding(greedy=True, max_new_tokens=config.max_new_tokens)
        result = evaluate(policy, rows, decoding, Scoring(validation_metrics(config.best_metric)))
        scores.update(result.values())
        run.append("validation.jsonl", {"step": step, **scores})
        report(f"sft {step}/{config.max_steps}  " + "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))

    def save(step: int, validation_due: bool) -> None:
        if step > 0:
            run.replace_directory("last", policy.save_adapter)
            if config.train_projector:
                run.replace_file("projector.safetensors", partial(save_projector, policy))
        checkpoints.save(step, validation_due=validation_due, token_budget=policy.token_budget)

    def one_step(step: int) -> None:
        policy.train()
        batch = batch_indices(len(groups), config.batch_size, step - 1, config.seed)

        def accumulate() -> float:
            optimizer.zero_grad()
            torch.manual_seed(config.seed * 1_000_003 + step - 1)  # dropout: a function of seed and step
            return sft_gradient(policy, [groups[i] for i in batch])

        loss = within_memory(policy, accumulate)
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        met = f"It met the rows {', '.join(repr(row_name(row)) for i in batch for row in groups[i])}."
        record = skips.one(optimizer, schedule, step, loss, norm.item(), met)
        seconds = time.perf_counter() - started
        rate = schedule.get_last_lr()[0]
        run.append("metrics.jsonl", {"step": step, **record, "seconds": seconds, "learning_rate": rate})
        if step % 20 == 0:
            report(f"sft {step}/{config.max_steps}  nll {loss:.3f}  {seconds:.0f} s")

    state = checkpoints.begin(resume)
    if state is not None and config.token_budget == state["recipe"]["token_budget"]:
        policy.token_budget = state["token_budget"]
    take_steps(config, state, one_step, validate, save)
    return scores

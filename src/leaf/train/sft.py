"""Stage sft: supervised warm start on references, with the policy and the packed forward of stage rl."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leaf.checksums import write_checksums
from leaf.config import SftConfig
from leaf.credit.tree import PrefixTree
from leaf.data.given import training_and_validation
from leaf.data.recordings import audio_of, names_of
from leaf.data.rows import batch_indices, row_name, subset, take
from leaf.errors import DataError
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.fitting import advice, fitting_metrics, texts_and_languages
from leaf.evaluation.predict import Decoding
from leaf.evaluation.registry import Scoring
from leaf.memory import within_memory
from leaf.model.checks import check_policy
from leaf.model.family import encode_text
from leaf.model.policy import Policy
from leaf.model.projector import save_projector, unfreeze_projector
from leaf.model.prompts import check_placeholders, check_prompt_length
from leaf.model.scoring import batches, score
from leaf.progress import Busy
from leaf.runs.directory import RunDirectory
from leaf.runs.lost import lost_adapter
from leaf.train.describing import describe_adapter
from leaf.train.recipe import check_targets, note_on_validation
from leaf.train.schedule import seed_dropout
from leaf.train.supervised import SupervisedStage
from leaf.train.validation import scores_line, write_signatures


def share_audio(policy: Policy, rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group rows whose prompts begin alike: same text up to the audio and same audio. A group is one packed row."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        head, _ = _split_prompt(policy, row)
        groups.setdefault((str(head), str(names_of(audio_of(row)))), []).append(row)
    return list(groups.values())


def _split_prompt(policy: Policy, row: dict[str, Any]) -> tuple[str, str]:
    """Cut the rendered prompt behind its audio placeholder.

    A family that takes only conversations renders them itself, so its prompts stay whole.
    """
    if policy.family.encode is not encode_text:
        return row["prompt"], ""
    text = policy.render(row["prompt"])
    check_placeholders(policy.family, row, text.count(policy.family.audio_token))
    head, placeholder, tail = text.partition(policy.family.audio_token)
    return head + placeholder, tail


def sft_gradient(policy: Policy, groups: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Add the gradient of the mean negative log-likelihood per reference token, and return that mean in nats.

    Only reference tokens and their end token count. The rows of a group share their audio, and what follows it
    (question and reference) is a branch of one prefix tree. So the audio is encoded and attended to once.
    """
    heads, trees, masks = [], [], []
    for rows in groups:
        heads.append({**rows[0], "prompt": _split_prompt(policy, rows[0])[0]})
        tree, mask = _answers(policy, rows)
        trees.append(tree)
        masks.append(mask.to(policy.device))
    count = sum(int(mask.sum()) for mask in masks)
    prompts = policy.embed(heads)
    for rows, prompt in zip(groups, prompts, strict=True):
        for row in rows:
            behind = len(policy.token_ids(_split_prompt(policy, row)[1]))
            check_prompt_length(row, prompt.length + behind, policy.max_prompt_tokens)
    # Where the projector is trained, prompts have a graph of their own. It is cut off here, so that the graph of one
    # micro-batch can be freed before the next; the gradients that arrive at the cut go through the projector last.
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


def _answers(policy: Policy, rows: Sequence[dict[str, Any]]) -> tuple[PrefixTree, Tensor]:
    """Build the prefix tree of what follows the audio in each row, and a mask (rows, T) that is True at references."""
    questions = [policy.token_ids(_split_prompt(policy, row)[1]) for row in rows]
    answers = [[*policy.token_ids(_reference(row)), policy.end_of_answer] for row in rows]
    lengths = torch.tensor([len(q) + len(a) for q, a in zip(questions, answers, strict=True)])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        tokens[i, : lengths[i]] = torch.tensor(question + answer)
        mask[i, len(question) : lengths[i]] = True
    return PrefixTree.build(tokens, lengths), mask


def _reference(row: dict[str, Any]) -> str:
    if not row["reference"].strip():
        raise DataError("A training row has an empty reference; supervised training needs a text to imitate.")
    return row["reference"]


class _Sft(SupervisedStage):
    """Stage sft: the adapter and, by recipe, the projector learn the references."""

    config: SftConfig

    def __init__(
        self,
        config: SftConfig,
        policy: Policy,
        train_rows: Any,
        eval_rows: Any,
        run: RunDirectory,
        say: Callable[[str], None],
    ):
        # Before the projector is trained beside the adapter: in stage rl that would be refused.
        trains, *checked = check_policy(policy, take(train_rows, range(min(2, len(train_rows)))))
        for line in checked if config.train_projector else [trains, *checked]:
            say(line)
        groups: list[dict[str, Any]] = [{"params": [p for p in policy.parameters() if p.requires_grad]}]
        if config.train_projector:
            own = config.projector_learning_rate
            rate = config.learning_rate if own is None else own
            groups.append({"params": unfreeze_projector(policy), "lr": rate})
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        super().__init__(config, policy, run, groups, trained, train_rows, say)
        self.eval_rows = eval_rows
        if config.train_projector:
            counts = policy.describe()
            self.say(f"trainable {counts['trainable']:,} of {counts['total']:,} parameters: adapter and projector")
        self.recordings = share_audio(policy, take(train_rows, range(len(train_rows))))
        if config.eval_every:
            known = texts_and_languages(eval_rows)
            self.metrics, left_out = fitting_metrics(config.best_metric, *known)
            for line in (*left_out, *advice(self.metrics, *known)):
                self.say(f"sft: {line}")
        self.say(
            f"sft: {len(train_rows)} rows on {len(self.recordings)} recordings, {config.batch_size} recordings a step"
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take position and token budget from the state of a checkpoint."""
        super().restore(state)
        if self.config.token_budget == state["recipe"]["token_budget"]:
            # Other micro-batches would add up to other last bits.
            self.policy.token_budget = state["token_budget"]

    def learn(self, number: int) -> None:
        """Take a step on the next recordings."""
        config, policy = self.config, self.policy
        policy.train()
        indices = batch_indices(len(self.recordings), config.batch_size, number - 1, config.seed)
        batch = [self.recordings[i] for i in indices]

        def accumulate() -> float:
            self.optimizer.zero_grad()
            seed_dropout(config.seed, number)
            return sft_gradient(policy, batch)

        loss = within_memory(policy, accumulate)
        names = [repr(row_name(row)) for rows in batch for row in rows]
        self.finish_step(number, loss, self.parameters, f"rows {', '.join(names)}", name="nll", every=20)

    def validate(self) -> None:
        """Score greedy answers to the validation rows."""
        config, policy = self.config, self.policy
        policy.eval()
        rows = take(self.eval_rows, subset(len(self.eval_rows), config.eval_items, config.eval_items_seed))
        decoding = Decoding(greedy=True, max_new_tokens=config.max_new_tokens)
        scoring = Scoring(self.metrics)
        # Nothing is kept of a validation that is given up.
        with self.stop.obeyed(), Busy(self.say, "sft: validating", len(rows), quiet=True) as busy:
            result = evaluate(policy, rows, decoding, scoring, progress=lambda count: self.count(busy, count))
        scores = result.values()
        write_signatures(self.run, result.signatures)
        self.log_scores(scores, scores_line(scores))

    def _write_last(self, folder: Path) -> None:
        """Write adapter and projector into one folder, so that one rename gives both their names."""
        self.policy.save_adapter(folder)
        projector = self.config.train_projector or self.config.projector is not None
        describe_adapter(folder, self.run, self.done, self.policy, projector=projector)
        if self.config.train_projector:
            save_projector(self.policy, folder / "projector.safetensors")
            write_checksums(folder)

    def write_trained(self) -> None:
        """Write last/."""
        self.run.replace_directory("last", self._write_last)

    def lost(self) -> str | None:
        """Say that last/ is missing or damaged."""
        return lost_adapter(self.run.path / "last")


def sft(
    config: SftConfig,
    policy: Policy,
    train_rows: Any,
    eval_rows: Any,
    run: RunDirectory,
    say: Callable[[str], None] = print,
    *,
    resume: bool = False,
) -> dict[str, float]:
    """Train the adapter and, by recipe, the projector on references.

    Writes metrics.jsonl, validation.jsonl, last/ (adapter and projector.safetensors) and checkpoints/.

    Args:
        config: the recipe.
        policy: the model with the adapter to train.
        train_rows, eval_rows: rows with `prompt`, `audio` and `reference`.
        run: the run directory.
        say: takes every line meant for a person.
        resume: continue from the newest intact checkpoint.

    Returns:
        The scores of the last validation.

    Raises:
        RunInterrupted: the run was asked to stop (leaf.runs.signals), and it is saved.
    """
    train_rows, eval_rows = training_and_validation(train_rows, eval_rows)
    check_targets(config, train_rows, eval_rows)
    if note := note_on_validation(config, train_rows, eval_rows):
        say(f"sft: {note}")
    return _Sft(config, policy, train_rows, eval_rows, run, say).train(resume=resume)

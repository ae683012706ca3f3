"""Stage align: teach the projector to write in the language model's own token embeddings.

Each projected audio frame f is read as a distribution over the tokens of the training transcripts by its squared
distance to their embeddings, p(v | f) ∝ exp(−s/2 · |f − e_v|²), and trained with CTC (Graves et al. 2006) against the
tokenised transcript. Only the projector learns, so the language model meets vectors it already understands.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from leaf.config import AlignConfig
from leaf.data.rows import batch_indices, take
from leaf.errors import DataError, ModelError
from leaf.model.policy import Policy
from leaf.model.projector import audio_features, project, save_projector, unfreeze_projector
from leaf.runs.checkpoints import Checkpoints, check_space
from leaf.runs.directory import RunDirectory
from leaf.runs.skipped import MOST_SKIPPED, SkippedSteps
from leaf.train.schedule import build_optimizer, build_schedule, check_stage
from leaf.train.steps import take_steps

_FRAME_TOLERANCE = 0.02  # of the norm: half precision in between, and sums in another order
_NAMED = 20  # rows that a message lists


class CtcAligner(nn.Module):
    """Score projected frames against token embeddings.

    Args:
        policy: gives tokenizer, embeddings and projected frames.
        texts: transcripts whose tokens make up the output vocabulary.

    The blank is the embedding of a lone space: a filler the language model reads over.
    """

    def __init__(self, policy: Policy, texts: list[str]):
        super().__init__()
        self.tokenizer = policy.tokenizer
        blank = self.tokenizer(" ", add_special_tokens=False)["input_ids"][0]
        used = sorted({token for text in texts for token in self.token_ids(text)} - {blank})
        self.vocabulary = [blank, *used]
        self.index = {token: i for i, token in enumerate(self.vocabulary)}
        embeddings = policy.base.get_input_embeddings().weight.detach()
        self.register_buffer("embeddings", embeddings[self.vocabulary].float())
        self.log_scale = nn.Parameter(torch.zeros((), device=embeddings.device))

    def token_ids(self, text: str) -> list[int]:
        """Return a text's tokens as the tokenizer numbers them."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def targets(self, text: str) -> list[int]:
        """Return one of the transcripts it was made for as indices into its vocabulary."""
        return [self.index[token] for token in self.token_ids(text)]

    def fits(self, frames: Tensor, text: str) -> bool:
        """Tell whether CTC can write a transcript over its frames: one for each token, a blank between equal ones."""
        targets = self.targets(text)
        return len(targets) + sum(a == b for a, b in pairwise(targets)) <= len(frames)

    def log_probs(self, frames: Tensor) -> Tensor:
        """Return (F, V) log-probabilities for frames (F, D)."""
        embeddings: Tensor = self.get_buffer("embeddings")
        logits = frames.float() @ embeddings.T - 0.5 * embeddings.square().sum(-1)
        return (self.log_scale.exp() * logits).log_softmax(-1)

    def forward(self, frames: list[Tensor], texts: list[str]) -> Tensor:
        """Return the mean CTC loss per target token in nats; infinite where a transcript does not fit its frames."""
        logs = [self.log_probs(frame) for frame in frames]
        padded = nn.utils.rnn.pad_sequence(logs)  # (F, B, V)
        targets = [torch.tensor(self.targets(text)) for text in texts]
        return nn.functional.ctc_loss(
            padded,
            torch.cat(targets).to(padded.device),
            torch.tensor([len(log) for log in logs]),
            torch.tensor([len(target) for target in targets]),
            blank=0,
        )

    def decode(self, frames: Tensor) -> list[int]:
        """Return the best path as vocabulary indices, repeats merged and blanks dropped."""
        path = torch.unique_consecutive(self.log_probs(frames).argmax(-1)).tolist()
        return [index for index in path if index != 0]


def token_error_rate(aligner: CtcAligner, frames: list[Tensor], texts: list[str]) -> float:
    """Return edit distance over transcript length between best paths and transcripts, in tokens.

    A token of a transcript that the aligner does not know is an error like any other.
    """
    import jiwer

    wanted = [" ".join(map(str, aligner.token_ids(text))) for text in texts]
    got = [" ".join(str(aligner.vocabulary[index]) for index in aligner.decode(frame)) for frame in frames]
    return float(jiwer.wer(wanted, got))


def align(
    config: AlignConfig,
    policy: Policy,
    train_rows: Any,
    eval_rows: Any,
    run: RunDirectory,
    report: Callable[[str], None] = print,
    *,
    resume: bool = False,
) -> dict[str, float]:
    """Train the projector; rows need `prompt`, `audio` and `reference` (the transcript).

    Writes metrics.jsonl, validation.jsonl, projector.safetensors and checkpoints/; returns the last validation.
    `resume` goes on from the newest intact checkpoint.

    Raises:
        RunInterrupted: SIGTERM, SIGUSR1 or Ctrl-C came, and the run is saved; only in the main thread.
    """
    check_stage(config)
    texts = [row["reference"] for row in train_rows]
    if not all(text.strip() for text in texts):
        raise DataError("A training row has an empty transcript; CTC needs the spoken words of every row.")
    aligner = CtcAligner(policy, texts).to(policy.device)
    projector = unfreeze_projector(policy)
    optimizer = build_optimizer([*projector, *aligner.parameters()], config)
    schedule = build_schedule(optimizer, config)
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad} | dict(aligner.named_parameters())
    facts = {"training rows": len(texts)}
    checkpoints = Checkpoints(run, config, named, optimizer, schedule, facts=facts, say=report)
    check_space(run.path, named, config.keep_checkpoints, have=len(checkpoints.steps()))
    state = checkpoints.begin(resume)
    eval_rows = take(eval_rows, range(min(len(eval_rows), config.eval_items or len(eval_rows))))
    # The encoder is frozen, so its output is computed once, not once per epoch.
    report(f"align: encoding {len(train_rows)} + {len(eval_rows)} recordings")
    check_frame_wise(policy, *take(train_rows, [0]))
    features, eval_features = _features(policy, train_rows), _features(policy, eval_rows)
    usable = _usable(aligner, features, texts, report)
    started, scores = time.perf_counter(), {}
    skips = SkippedSteps(MOST_SKIPPED, policy.base.dtype, report)

    def one_step(step: int) -> None:
        batch = [usable[i] for i in batch_indices(len(usable), config.batch_size, step - 1, config.seed)]
        loss = aligner(project(policy, [features[i] for i in batch]), [texts[i] for i in batch])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(projector, config.max_grad_norm)
        met = f"It met the training rows {', '.join(map(str, batch))}, counted from 0."
        record = skips.one(optimizer, schedule, step, loss.item(), norm.item(), met)
        seconds = time.perf_counter() - started
        run.append("metrics.jsonl", {"step": step, **record, "seconds": seconds})
        if step % 50 == 0:
            report(f"align {step}/{config.max_steps}  ctc {loss.item():.3f}  {seconds:.0f} s")

    @torch.no_grad()
    def validate(step: int) -> None:
        frames = project(policy, eval_features)
        scores["token_error_rate"] = token_error_rate(aligner, frames, [row["reference"] for row in eval_rows])
        run.append("validation.jsonl", {"step": step, **scores})
        report(f"align {step}/{config.max_steps}  token error rate {scores['token_error_rate']:.4f}")

    def save(step: int, validation_due: bool) -> None:
        if step > 0:
            run.replace_file("projector.safetensors", partial(save_projector, policy))
        checkpoints.save(step, validation_due=validation_due)

    take_steps(config, state, one_step, validate, save)
    return scores


def _usable(aligner: CtcAligner, features: list[Tensor], texts: list[str], say: Callable[[str], None]) -> list[int]:
    """Return which rows CTC can learn from, and say which others are left out.

    Raises:
        DataError: it can learn from none.
    """
    usable = [i for i, text in enumerate(texts) if aligner.fits(features[i], text)]
    if not usable:
        raise DataError(
            f"None of the {len(texts)} training rows has as many audio frames as CTC needs for its transcript: one for "
            "each token, and one more between equal ones. Check that every transcript is that of its recording."
        )
    if rest := sorted({*range(len(texts))} - {*usable}):
        which = ", ".join(map(str, rest[:_NAMED])) + (", ..." if len(rest) > _NAMED else "")
        say(
            f"align: {len(rest)} of {len(texts)} training rows are left out, since their transcripts have more tokens "
            f"than CTC can write over their audio frames: rows {which}, counted from 0"
        )
    return usable


def _features(policy: Policy, rows: Any, batch_size: int = 16) -> list[Tensor]:
    """Encode all rows, in half precision to save memory."""
    batches = (take(rows, range(at, min(at + batch_size, len(rows)))) for at in range(0, len(rows), batch_size))
    return [frames.half() for batch in batches for frames in audio_features(policy, batch)]


@torch.no_grad()
def check_frame_wise(policy: Policy, row: dict[str, Any]) -> None:
    """Refuse a projector whose output for cached frames is not what a prompt holds where its audio is.

    Raises:
        ModelError: it maps something other than one frame to one position, or something follows it.
    """
    projected = project(policy, audio_features(policy, [row]))[0].float()
    (prompt,) = policy.embed([row])
    wanted = prompt.embeddings[prompt.is_audio][:, : projected.shape[1]].float()
    off = float((projected - wanted).norm() / wanted.norm())
    if not off <= _FRAME_TOLERANCE:
        raise ModelError(
            f"The projector's output for the audio of a row differs from what its prompt holds by {off:.0%} of its "
            f"norm; at most {_FRAME_TOLERANCE:.0%} is allowed: in {type(policy.base).__name__} something else follows "
            "the projector, which stage align would train past. Train it on references with stage sft and "
            "train_projector: true."
        )

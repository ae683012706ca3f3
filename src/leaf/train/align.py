"""Stage align: teach the projector to write in the language model's own token embeddings.

Each projected audio frame f is read as a distribution over the tokens of the training transcripts by its squared
distance to their embeddings, p(v | f) ∝ exp(−s/2 · |f − e_v|²), and trained with CTC (Graves et al. 2006) against the
tokenised transcript. Only the projector learns; the language model then gets vectors that it already understands.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from leaf.config import AlignConfig
from leaf.data.given import training_and_validation
from leaf.data.rows import batch_indices, subset, take
from leaf.errors import DataError, ModelError
from leaf.model.checks import check_model
from leaf.model.policy import Policy
from leaf.model.projector import audio_features, project, save_projector, unfreeze_projector
from leaf.progress import Busy
from leaf.runs.directory import RunDirectory
from leaf.runs.lost import lost_projector
from leaf.train.recipe import check_targets, note_on_validation
from leaf.train.supervised import SupervisedStage

_FRAME_TOLERANCE = 0.02  # of the norm: frames are kept in half precision, and sums are in another order
_NAMED = 20  # rows that a message lists


class CtcAligner(nn.Module):
    """Score projected frames against token embeddings.

    The blank of CTC is the embedding of a lone space, a filler that the language model reads over.

    Args:
        policy: gives tokenizer and embeddings.
        texts: transcripts whose tokens make up the output vocabulary.
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
        """Tokenise a text; the numbers are the tokenizer's."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def targets(self, text: str) -> list[int]:
        """Tokenise one of its own transcripts; the numbers are indices into its vocabulary."""
        return [self.index[token] for token in self.token_ids(text)]

    def fits(self, frames: Tensor, text: str) -> bool:
        """Tell whether a transcript has room in its frames: one for each token, and a blank between equal ones."""
        targets = self.targets(text)
        return len(targets) + sum(a == b for a, b in pairwise(targets)) <= len(frames)

    def log_probs(self, frames: Tensor) -> Tensor:
        """Compute log-probabilities (F, V) of the vocabulary for frames (F, D)."""
        # −|f − e|²/2 without the |f|², which is the same for all tokens and falls out of the softmax.
        embeddings: Tensor = self.get_buffer("embeddings")
        logits = frames.float() @ embeddings.T - 0.5 * embeddings.square().sum(-1)
        return (self.log_scale.exp() * logits).log_softmax(-1)

    def forward(self, frames: list[Tensor], texts: list[str]) -> Tensor:
        """Compute the mean CTC loss per target token in nats; infinite where a transcript does not fit its frames."""
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
        """Find the best path: vocabulary indices, repeats merged and blanks dropped."""
        path = torch.unique_consecutive(self.log_probs(frames).argmax(-1)).tolist()
        return [index for index in path if index != 0]


def token_error_rate(aligner: CtcAligner, frames: list[Tensor], texts: list[str]) -> float:
    """Compute the edit distance between best paths and transcripts, in tokens, over the length of the transcripts.

    A token of a transcript that the aligner does not know counts as an error like any other.
    """
    import jiwer

    wanted = [" ".join(map(str, aligner.token_ids(text))) for text in texts]
    got = [" ".join(str(aligner.vocabulary[index]) for index in aligner.decode(frame)) for frame in frames]
    return float(jiwer.wer(wanted, got))


class _Align(SupervisedStage):
    """Stage align: the projector learns to write transcripts in token embeddings."""

    def __init__(
        self,
        config: AlignConfig,
        policy: Policy,
        train_rows: Any,
        eval_rows: Any,
        run: RunDirectory,
        say: Callable[[str], None],
    ):
        self.texts = [row["reference"] for row in train_rows]
        if not all(text.strip() for text in self.texts):
            raise DataError("A training row has an empty transcript; CTC needs the spoken words of every row.")
        check_model(policy, take(train_rows, [0]))
        self.aligner = CtcAligner(policy, self.texts).to(policy.device)
        self.projector = unfreeze_projector(policy)
        groups = [{"params": [*self.projector, *self.aligner.parameters()]}]
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        trained |= dict(self.aligner.named_parameters())
        super().__init__(config, policy, run, groups, trained, train_rows, say)
        eval_rows = take(eval_rows, subset(len(eval_rows), config.eval_items, config.eval_items_seed))
        self.eval_texts = [row["reference"] for row in eval_rows]
        # The encoder is frozen, so its output is computed once, not once per epoch.
        what = f"align: encoding {len(train_rows)} + {len(eval_rows)} recordings"
        with Busy(self.say, what, len(train_rows) + len(eval_rows)) as busy:
            check_frame_wise(policy, *take(train_rows, [0]))
            self.features = _features(policy, train_rows, busy)
            self.eval_features = _features(policy, eval_rows, busy)
        self.usable = _usable(self.aligner, self.features, self.texts, self.say)

    def learn(self, number: int) -> None:
        """Take a step on the next recordings."""
        config = self.config
        indices = batch_indices(len(self.usable), config.batch_size, number - 1, config.seed)
        batch = [self.usable[i] for i in indices]
        frames = project(self.policy, [self.features[i] for i in batch])
        loss = self.aligner(frames, [self.texts[i] for i in batch])
        loss.backward()
        # The norm is that of the projector alone; the aligner's own parameter is one number, its scale.
        rows = f"training rows {', '.join(map(str, batch))}, counted from 0"
        self.finish_step(number, loss.item(), self.projector, rows, name="ctc", every=50)

    @torch.no_grad()
    def validate(self) -> None:
        """Compute the token error rate over the validation rows."""
        with self.stop.obeyed():
            frames = project(self.policy, self.eval_features)
            rate = token_error_rate(self.aligner, frames, self.eval_texts)
        self.log_scores({"token_error_rate": rate}, f"token error rate {rate:.4f}")

    def write_trained(self) -> None:
        """Write projector.safetensors."""
        self.run.replace_file("projector.safetensors", partial(save_projector, self.policy))

    def lost(self) -> str | None:
        """Say that projector.safetensors is missing or damaged."""
        return lost_projector(self.run.path / "projector.safetensors")


def align(
    config: AlignConfig,
    policy: Policy,
    train_rows: Any,
    eval_rows: Any,
    run: RunDirectory,
    say: Callable[[str], None] = print,
    *,
    resume: bool = False,
) -> dict[str, float]:
    """Train the projector on transcripts.

    Writes metrics.jsonl, validation.jsonl, projector.safetensors and checkpoints/.

    Args:
        config: the recipe.
        policy: the model; no adapter is needed.
        train_rows, eval_rows: rows with `prompt`, `audio` and `reference`, the transcript.
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
        say(f"align: {note}")
    return _Align(config, policy, train_rows, eval_rows, run, say).train(resume=resume)


def _usable(aligner: CtcAligner, features: list[Tensor], texts: list[str], say: Callable[[str], None]) -> list[int]:
    """Find the rows that CTC can learn from, and say which others are left out.

    Raises:
        DataError: there is none.
    """
    usable = [i for i, text in enumerate(texts) if aligner.fits(features[i], text)]
    if not usable:
        raise DataError(
            f"None of the {len(texts)} training rows has as many audio frames as CTC needs for its transcript: one for "
            "each token, and one more between equal ones. Check that every row has its own transcript."
        )
    if rest := sorted({*range(len(texts))} - {*usable}):
        which = ", ".join(map(str, rest[:_NAMED])) + (", ..." if len(rest) > _NAMED else "")
        say(
            f"align: {len(rest)} of {len(texts)} training rows are left out, since their transcripts have more tokens "
            f"than CTC can write over their audio frames: rows {which}, counted from 0"
        )
    return usable


def _features(policy: Policy, rows: Any, busy: Busy, batch_size: int = 16) -> list[Tensor]:
    """Encode the audio of all rows; the frames are kept in half precision to save memory."""
    features: list[Tensor] = []
    for at in range(0, len(rows), batch_size):
        batch = take(rows, range(at, min(at + batch_size, len(rows))))
        features += [frames.half() for frames in audio_features(policy, batch)]
        busy.add(len(batch))
    return features


@torch.no_grad()
def check_frame_wise(policy: Policy, row: dict[str, Any]) -> None:
    """Refuse a model in which the projector's output for cached frames is not what a prompt has at its audio.

    Raises:
        ModelError: the projector maps something other than one frame to one position, or something follows it.
    """
    projected = project(policy, audio_features(policy, [row]))[0].float()
    (prompt,) = policy.embed([row])
    wanted = prompt.embeddings[prompt.is_audio][:, : projected.shape[1]].float()
    off = float((projected - wanted).norm() / wanted.norm())
    if not off <= _FRAME_TOLERANCE:
        raise ModelError(
            f"The projector's output for the audio of a row differs from the prompt's by {off:.0%} of its norm, and "
            f"{_FRAME_TOLERANCE:.0%} is allowed: in {type(policy.base).__name__} something follows the projector, "
            "which stage align does not see. Train the projector on references with stage sft and train_projector: "
            "true."
        )

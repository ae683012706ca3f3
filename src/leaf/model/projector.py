"""Train, run, save and load the projector, which maps audio features into the embedding space of the language model.

Stage align runs the projector alone, on the encoder's output that it computes once. Stage sft may train the projector
within the whole model. Stage rl leaves it frozen.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leaf.checksums import damage
from leaf.data.rows import Example
from leaf.errors import ModelError
from leaf.memory import in_parts
from leaf.model.policy import TOO_LONG, Policy

_CHECKSUM = "sha256"  # key of the header
_FRAME_WISE = (
    "Stage align caches the encoder's frames, so it needs a projector that maps them one by one, as that of "
    "AudioFlamingo3 does. Train this one on references instead, with stage sft and train_projector: true."
)


def unfreeze_projector(policy: Policy) -> list[nn.Parameter]:
    """Make the projector trainable in float32, whatever the precision around it, and return its parameters."""
    dtype = policy.base.dtype
    # Some outer classes cast the audio features to the projector's precision, now float32 (Phi-4-multimodal); the
    # encoder keeps its own.
    _cast_inputs(policy.audio_tower, dtype)
    projector = policy.projector.float().requires_grad_(True)
    _cast_inputs(projector, torch.float32)
    projector.register_forward_hook(lambda module, args, output: output.to(dtype))
    return list(projector.parameters())


def _cast_inputs(module: nn.Module, dtype: torch.dtype) -> None:
    """Have a module's floating-point inputs cast to a precision before every forward."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    module.register_forward_pre_hook(
        lambda module, args, kwargs: (tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}),
        with_kwargs=True,
    )


@torch.no_grad()
def audio_features(policy: Policy, rows: Sequence[Example]) -> list[Tensor]:
    """Compute what the frozen encoder gives the projector for each row's audio, one frame per audio position.

    Returns:
        Per row (F, width): F frames, the width of the encoder's output.

    Raises:
        ModelError: the projector does not take one frame per audio position.
        RunError: memory does not suffice for one row.
    """
    return in_parts(policy, "rows_at_once", rows, lambda part: _audio_features(policy, part), alone=TOO_LONG)


def _audio_features(policy: Policy, rows: Sequence[Example]) -> list[Tensor]:
    inputs = policy.inputs(rows)
    counts = (inputs["input_ids"] == policy.audio_token_id).sum(-1).tolist()
    args, kwargs = policy.run_until(policy.projector, inputs)
    given = [*args, *kwargs.values()]
    whole = len(given) == 1 and isinstance(given[0], Tensor) and given[0].ndim == 3
    if not whole or given[0].shape[0] != len(counts) or given[0].shape[1] < max(counts):
        shapes = ", ".join(str(tuple(one.shape)) for one in given if isinstance(one, Tensor))
        raise ModelError(
            f"The projector of {type(policy.base).__name__} takes tensors of shape {shapes}, not one frame per audio "
            f"position (rows, at least {max(counts)} frames, width) alone. {_FRAME_WISE}"
        )
    # Shorter recordings are padded to the encoder's window; only the frames of real audio have a position.
    return [row[:count] for row, count in zip(given[0], counts, strict=True)]


def project(policy: Policy, features: Sequence[Tensor]) -> list[Tensor]:
    """Map what `audio_features` gave, (F, width) per row, to embeddings (F, D)."""
    joined = torch.cat(list(features))[None].to(policy.base.dtype)
    frames = policy.projector(joined)
    if frames.shape[:2] != joined.shape[:2]:
        raise ModelError(
            f"The projector of {type(policy.base).__name__} makes {frames.shape[1]} embeddings of {joined.shape[1]} "
            f"frames, not one of each. {_FRAME_WISE}"
        )
    return list(frames[0].split([len(part) for part in features]))


def save_projector(policy: Policy, file: str | Path) -> None:
    """Write the projector's weights as safetensors, with their checksum in the header of the file."""
    weights = {key: value.detach().cpu().contiguous() for key, value in policy.projector.state_dict().items()}
    # In the file itself, so that one rename brings both: a kill cannot part them.
    save_file(weights, file, metadata={_CHECKSUM: _digest(weights)})


def load_projector(policy: Policy, file: str | Path) -> None:
    """Load projector weights that `save_projector` wrote.

    Raises:
        ModelError: the file is not in safetensors, is not as it was written, or holds other names or shapes than this
            model's projector.
    """
    try:
        if (wrong := projector_damage(Path(file))) is not None:
            raise ModelError(
                f"The projector file {file} is not as it was written: {wrong}. Use a copy, or resume the run that "
                "wrote it, which writes it again."
            )
        policy.projector.load_state_dict(load_file(file))
    except SafetensorError as error:
        raise ModelError(
            f"The projector file {file} is not in safetensors: {error}. leaf reads nothing else, because a .bin or .pt "
            "file may hold code."
        ) from error
    except (RuntimeError, OSError) as error:
        raise ModelError(f"The projector file {file} does not fit this model: {error}") from error


def projector_damage(file: Path) -> str | None:
    """Say what differs from what `save_projector` wrote; None if nothing does, or the file has no checksum.

    Raises:
        SafetensorError, OSError: it cannot be read.
    """
    with safe_open(file, "pt") as opened:
        written = (opened.metadata() or {}).get(_CHECKSUM)
    if written is not None and written != _digest(load_file(file)):
        return "the checksum of its weights is wrong"
    return damage(file.parent, [file.name])  # stage sft lists it beside the adapter's files


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of weights and their names, in hex."""
    digest = sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

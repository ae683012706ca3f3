"""Checkpoints as models: which ones a run keeps, and the trained weights of one."""

import re
from pathlib import Path

import torch

from leaf.errors import RunError
from leaf.runs.checkpoints import read_checkpoint


def kept_checkpoints(run: Path) -> list[Path]:
    """List the checkpoints that a run keeps after its first step, in order."""
    found = sorted((run / "checkpoints").glob("step-*"))
    return [path for path in found if is_checkpoint(path) and int(path.name.removeprefix("step-"))]


def is_checkpoint(path: Path) -> bool:
    """Tell whether a directory is a checkpoint of a run."""
    return re.fullmatch(r"step-\d{6,}", path.name) is not None and (path / "manifest.json").is_file()


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Copy the trained parameters of a checkpoint into a model that has them under the same names.

    Raises:
        RunError: the checkpoint is damaged, or of another adapter.
    """
    tensors = read_checkpoint(path)[1]
    held = {key.removeprefix("parameter/"): tensor for key, tensor in tensors.items() if key.startswith("parameter/")}
    parameters = dict(model.named_parameters())
    odd = [name for name, tensor in held.items() if name not in parameters or parameters[name].shape != tensor.shape]
    if odd:
        raise RunError(f"{path} does not fit the model: {odd[0]}. Give the recipe that the run was trained with.")
    with torch.no_grad():
        for name, tensor in held.items():
            parameters[name].copy_(tensor)

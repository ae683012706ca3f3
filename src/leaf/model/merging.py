"""Write an adapter into the weights it adapts, as a checkpoint to train further or to serve without peft."""

import json
from pathlib import Path
from typing import Any

import peft

from leaf.errors import ModelError
from leaf.files import new_directory
from leaf.model.policy import Policy

CARD = "leaf_merged.json"


def new_place(out: str | Path) -> Path:
    """Take a path to write a directory at.

    Raises:
        ModelError: there is something already.
    """
    out = Path(out)
    if out.exists():
        raise ModelError(f"{out} exists and is left as it is. Name a directory that does not exist yet.")
    return out


def write_merged(policy: Policy, out: str | Path, card: dict[str, Any] | None = None) -> Path:
    """Write a policy's model with its adapter merged, and its processor, as a checkpoint directory.

    The weights keep the precision they were loaded in; the sum is rounded to it. When the merged model is trained
    further, it is the reference that the divergence is measured from. The policy's own model is changed, so do not use
    the policy afterwards.

    Args:
        policy: has an adapter.
        out: directory to write, which must not exist; it appears whole or not at all.
        card: where the weights come from; written beside them as leaf_merged.json.

    Raises:
        ModelError: there is no adapter, a merged weight is not finite, or `out` exists.
    """
    if not isinstance(policy.model, peft.PeftModel):
        raise ModelError("This policy has no adapter to merge. Load it with `adapter=`.")
    out = new_place(out)
    processor = policy.processor
    try:
        model: Any = policy.model.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except (ValueError, RuntimeError) as error:  # a weight that is not finite; a bias for a layer that has none
        raise ModelError(f"The adapter cannot be merged: {error}") from error
    if getattr(model.config, "has_lora_adapter", False):  # Granite Speech 3.3: its own is already in the weights
        model.config.has_lora_adapter = False
    # On saving, transformers would undo the renaming that it did for the last file it read, which may have been the
    # checkpoint's own adapter.
    model._weight_conversions = None

    def fill(new: Path) -> None:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        (new / CARD).write_text(json.dumps(card or {}, indent=2) + "\n", encoding="utf-8")

    new_directory(out, fill)
    return out

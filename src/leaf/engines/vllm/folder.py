"""A folder for a server that takes embedded prompts: the bare language model and an adapter for it."""

from pathlib import Path
from typing import Any

import peft

from leaf.engines.vllm.export import adapter_for_vllm, export_language_model
from leaf.engines.vllm.names import VERSION
from leaf.files import new_directory, read_json, write_json
from leaf.model.merging import new_place
from leaf.model.policy import Policy

LANGUAGE_MODEL, ADAPTER, CARD = "language_model", "adapter", "leaf_export.json"


def write_folder(policy: Policy, to: str | Path, *, adapter: bool = True) -> Path:
    """Write the language model of a policy, its adapter if it has one, and a card of both.

    Args:
        policy: its adapter is the one that is served.
        to: directory to write, which must not exist; it appears whole or not at all.
        adapter: whether the adapter is written.

    Raises:
        ModelError: vLLM cannot serve the decoder alone, has no place for the adapter, or `to` exists.
    """
    to = new_place(to)
    base = str(policy.base_name or getattr(policy.base.config, "_name_or_path", None))

    def fill(new: Path) -> None:
        export_language_model(policy, new / LANGUAGE_MODEL)
        if adapter and isinstance(policy.model, peft.PeftModel):
            adapter_for_vllm(policy, new / ADAPTER)
        write_json(new / CARD, card_of(base, str(policy.base.dtype).removeprefix("torch.")))

    new_directory(to, fill)
    return to


def card_of(model: str, dtype: str) -> dict[str, Any]:
    """Describe what a folder holds, for people and to know it again."""
    return {"model": model, "dtype": dtype, "for": f"vLLM {VERSION}"}


def language_model_in(folder: Path, card: dict[str, Any]) -> bool:
    """Tell whether a folder holds the language model that a card describes."""
    return read_json(folder / CARD) == card and (folder / LANGUAGE_MODEL).is_dir()

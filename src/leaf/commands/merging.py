"""Merge an adapter into the model of a recipe, for `leaf merge` and `leaf export --for merged`."""

from pathlib import Path

from leaf.commands.running import load_policy
from leaf.commands.terminal import say
from leaf.config import RunConfig
from leaf.progress import Busy


def merge_adapter(config: RunConfig, adapter: Path, out: Path) -> None:
    """Write the model of a recipe with an adapter, and the projector that goes with it, as one checkpoint.

    Raises:
        ModelError: the adapter cannot be merged, or `out` exists.
    """
    from leaf.files import file_sha256
    from leaf.model.from_recipe import projector_of
    from leaf.model.merging import new_place, write_merged

    out = new_place(out)  # before anything is loaded
    policy = load_policy(config, adapter)
    card = {"model": config.model, "adapter_sha256": file_sha256(adapter / "adapter_model.safetensors")}
    card["dtype"] = str(policy.base.dtype).removeprefix("torch.")
    if (projector := projector_of(config, adapter)) is not None:
        card["projector_sha256"] = file_sha256(Path(projector))
    with Busy(say, f"writing {out}"):
        write_merged(policy, out, card)
    trained = str(adapter) if projector is None else f"{adapter} and {projector}"
    say(
        f"{out} holds {config.model} with {trained} merged in {card['dtype']}; serve it, or train on with `model={out}`"
    )

"""Describe a saved adapter: its model card, with how its family is served."""

from pathlib import Path

from leaf.engines.vllm.names import how_to_serve
from leaf.model.policy import Policy
from leaf.runs.card import write_card
from leaf.runs.directory import RunDirectory


def describe_adapter(folder: Path, run: RunDirectory, step: int, policy: Policy, *, projector: bool) -> None:
    """Write the card of an adapter that was saved after a step.

    Args:
        folder: has the adapter.
        run, step: what it was trained in, and how long.
        policy: its model.
        projector: whether a projector other than the checkpoint's goes with it.
    """
    write_card(
        folder,
        run,
        step,
        type(policy.base).__name__,
        own_adapter=policy.family.adapter is not None,
        serving=how_to_serve(policy.family, projector=projector),
    )

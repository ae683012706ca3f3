"""Look whether the servers of a recipe are there and fit its model, before anything is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from leaf.config import LeafConfig
from leaf.engines.vllm.client import START, Lost, Server, encoded
from leaf.engines.vllm.folder import CARD
from leaf.engines.vllm.options import vllm_options
from leaf.errors import LeafError
from leaf.files import read_json
from leaf.model.device import pick_device, pick_dtype

# Whether it is in order, what was found, and what to change.
Answer = tuple[Literal["ok", "unsure", "fails"], str, str]


def look_at_servers(config: LeafConfig, width: int | None, positions: int) -> Iterator[Answer]:
    """Ask each server of a recipe what it serves, and for one token.

    Args:
        config: the recipe, with `sampler: vllm`.
        width: of the model's embeddings, None where that is not known.
        positions: the most that a prompt and its completion take.
    """
    for endpoint in vllm_options(config.sampler_options | {"retries": 0}).endpoints():
        server = Server(endpoint)
        try:
            yield _look_at(server, config, width, positions)
        except Lost as lost:
            yield "fails", f"{server.url} does not answer: {lost}", f"Start a server; {START}."
        except LeafError as error:
            yield "fails", str(error), ""
        finally:
            server.close()


def _look_at(server: Server, config: LeafConfig, width: int | None, positions: int) -> Answer:
    found = server.look()
    if server.longest is not None and server.longest < positions:
        advice = f"Start it with --max-model-len {positions}, or lower max_prompt_tokens or max_new_tokens."
        return "fails", f"{found}; a prompt and its completion take up to {positions}", advice
    if not server.loads_adapters():
        advice = "Start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
        return "fails", f"{found}, and loads no adapters while it runs", advice
    if (unlike := _unlike_card(server, config)) is not None:
        return unlike
    if width is not None:
        server.complete(None, encoded(torch.zeros(2, width)), {"max_tokens": 1, "temperature": 1.0})
        found += f"; it takes embeddings of width {width}, and adapters"
    return "ok", found, ""


def _unlike_card(server: Server, config: LeafConfig) -> Answer | None:
    """Compare a recipe with what leaf has written beside the model that it exported, where this machine sees it."""
    if (card := read_json(Path(server.folder).parent / CARD)) is None:
        return None
    url, model, dtype = server.url, card.get("model"), pick_dtype(config.dtype, pick_device(config.device))
    if not _same_model(str(model), str(config.model)):
        found = f"{url} serves the language model of {model}, and the recipe's model is {config.model}"
        return "fails", found, "Correct the address or the model, or start a server with `leaf serve RECIPE`."
    if card.get("dtype") != dtype:
        found = f"{url} serves a model exported in {card.get('dtype')}, and the policy computes in {dtype}"
        return "unsure", found, "Start a server with `leaf serve RECIPE`, which takes the recipe's precision."
    return None


def _same_model(one: str, other: str) -> bool:
    """Compare two names of a model: a folder may be named in two ways."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())

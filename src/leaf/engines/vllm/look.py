"""Look whether the servers of a recipe are there and fit its model, before anything is loaded."""

from collections.abc import Iterator

import torch

from leaf.config import LeafConfig
from leaf.engines.vllm.client import START, Lost, Server, encoded
from leaf.engines.vllm.options import vllm_options
from leaf.errors import LeafError

Answer = tuple[bool, str, str]  # whether it is in order, what was found, and what to change


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
            yield _look_at(server, width, positions)
        except Lost as lost:
            yield False, f"{server.url} does not answer: {lost}", f"Start a server; {START}."
        except LeafError as error:
            yield False, str(error), ""
        finally:
            server.close()


def _look_at(server: Server, width: int | None, positions: int) -> Answer:
    found = server.look()
    if server.longest is not None and server.longest < positions:
        advice = f"Start it with --max-model-len {positions}, or lower max_prompt_tokens or max_new_tokens."
        return False, f"{found}; a prompt and its completion take up to {positions}", advice
    if not server.loads_adapters():
        advice = "Start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
        return False, f"{found}, and loads no adapters while it runs", advice
    if width is not None:
        server.complete(None, encoded(torch.zeros(2, width)), {"max_tokens": 1, "temperature": 1.0})
        found += f"; it takes embeddings of width {width}, and adapters"
    return True, found, ""

"""The command `leaf serve`: a vLLM server of a recipe's language model, for prompts that leaf has embedded."""

import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from leaf.commands.running import Overrides, load_policy, read_recipe
from leaf.commands.terminal import say
from leaf.errors import ConfigError
from leaf.progress import Busy


def serve(
    source: Annotated[Path, typer.Argument(help="recipe, run directory or adapter folder")],
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    host: Annotated[str, typer.Option(help="address to listen on; by default this machine alone")] = "127.0.0.1",
    adapter: Annotated[str | None, typer.Option(help="best or last, of a run; default best where there is one")] = None,
    vllm: Annotated[str | None, typer.Option(help="environment with vLLM; default $LEAF_VLLM, .venv-vllm, ...")] = None,
    to: Annotated[
        Path | None, typer.Option(help="folder for what is exported; default runs/serving-NAME; used again if it fits")
    ] = None,
) -> None:
    """Serve a recipe's bare language model with vLLM, for `sampler: vllm`; arguments behind -- go to `vllm serve`."""
    from leaf.engines.vllm.launch import check_port, find_vllm, saying_when_ready, serve_command, server_environment

    program = find_vllm(vllm)  # before anything is loaded
    check_port(host, port)
    overrides, more = _split(overrides or [])
    config, folder = _meant(source, overrides, adapter)
    name = f"serving-{(source if folder is None else source.absolute()).stem}"
    place = (to or Path("runs") / name).absolute()  # the server says it, so that leaf doctor finds what is beside it
    made = _exported(config, folder, place)
    prompt, answer = config.max_prompt_tokens, getattr(config, "max_new_tokens", None)
    command = serve_command(
        program,
        place / "language_model",
        rank=made.rank,
        dtype=made.dtype,
        port=port,
        host=host,
        longest=None if prompt is None or answer is None else prompt + answer,
        layers=made.layers,
        adapters=made.adapters,
        more=more,
    )
    whole = ["    top_p: 1"] if getattr(config, "top_p", 1) != 1 else []  # training from a server needs it
    say("\n".join(["train with these lines in the recipe:", *whole, *_sampler(host, port)]))
    for name in made.adapters:
        say(f"the adapter is served under the name {name}")
    say(" ".join(command))
    say("vLLM takes a minute or more to start; a line says when it answers")
    saying_when_ready(host, port)
    environment = server_environment()
    os.execve(command[0], command, environment)  # signals then reach the server itself


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Part what belongs to the recipe from what belongs to vLLM, which begins with the first option."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:first], words[first:]


def _meant(source: Path, overrides: list[str], adapter: str | None) -> tuple[Any, Path | None]:
    """Read a recipe, or find an adapter with its recipe."""
    if not source.is_dir():
        if adapter is not None:
            raise ConfigError(f"--adapter is {adapter!r}, which names an adapter of a run, and {source} is a recipe.")
        return read_recipe(source, overrides, needed=("model",)), None
    with Busy(say, "loading PyTorch and transformers", quiet=True):
        from leaf.runs.artefact import find_artefact
    found = find_artefact(source, overrides, which=adapter)
    return found.config, found.folder


class _Made(NamedTuple):
    """What a server is started with: rank and layers of adapters, precision, and folders of adapters by name."""

    rank: int
    layers: list[str]
    dtype: str
    adapters: dict[str, Path]


def _exported(config: Any, folder: Path | None, place: Path) -> _Made:
    """Export what is not there yet."""
    from leaf.engines.vllm.export import linear_layers, saved_adapter_for_vllm
    from leaf.engines.vllm.folder import card_of, language_model_in, write_folder
    from leaf.engines.vllm.names import plain_config
    from leaf.files import file_sha256, read_json
    from leaf.model.demo import resolve_model
    from leaf.model.device import pick_device, pick_dtype
    from leaf.model.loading import find_model
    from leaf.plugins import load_plugins

    load_plugins(config.plugins)  # they may register the model's family
    checkpoint, remote = resolve_model(config.model, say=say), config.trust_remote_code
    described, family, _ = find_model(checkpoint, trust_remote_code=remote)
    plain_config(family, described)  # refuses before any weights are read
    dtype = pick_dtype(config.dtype, pick_device(config.device))
    card = card_of(config.model, dtype)
    if language_model_in(place, card):
        say(f"{place} has the language model of {config.model} already; remove it to have it exported again")
    else:
        policy = load_policy(config)
        with Busy(say, f"writing {place}"):
            write_folder(policy, place, adapter=False)
    layers = linear_layers(family, described)
    if folder is None:
        return _Made(getattr(config, "lora_r", 64), layers, dtype, {})
    name = f"{folder.name}-{file_sha256(folder / 'adapter_model.safetensors')[:8]}"
    if not (place / name).exists():
        saved_adapter_for_vllm(folder, checkpoint, place / name, trust_remote_code=remote)
    rank = (read_json(place / name / "adapter_config.json") or {})["r"]
    return _Made(rank, layers, dtype, {name: place / name})


def _sampler(host: str, port: int) -> list[str]:
    """Write the keys of a recipe that samples with this server, and what to mind where others reach it."""
    near = host in ("127.0.0.1", "localhost", "::1")
    lines = ["    sampler: vllm", f"    sampler_options: {{url: 'http://{host if near else 'THIS-HOST'}:{port}'}}"]
    if not near:
        lines += [
            "    # and adapter_dir in sampler_options, a folder that both machines see under one path",
            "whoever reaches this address may load adapters from any folder here: keep it inside a trusted network",
        ]
    return lines

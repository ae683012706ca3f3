"""The command `leaf export`: an adapter as plain peft loads it, as vLLM serves it, or merged into its model."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from leaf.commands.running import Overrides, load_policy
from leaf.commands.terminal import say
from leaf.errors import ConfigError, ModelError, did_you_mean
from leaf.progress import Busy

_TARGETS = ("vllm", "peft", "merged")


def export(
    source: Annotated[Path, typer.Argument(help="run directory or adapter folder, e.g. runs/demo or runs/demo/last")],
    to: Annotated[Path, typer.Option(help="directory to write")],
    target: Annotated[str, typer.Option("--for", help="vllm, peft or merged")],
    overrides: Overrides = None,
    adapter: Annotated[str | None, typer.Option(help="best or last; default best where there is one")] = None,
    language_model: Annotated[
        bool, typer.Option("--language-model", help="with vllm: the bare decoder too, which takes embedded prompts")
    ] = False,
    check_with: Annotated[
        str | None,
        typer.Option(
            help="environment with vLLM to check the export with, default $LEAF_VLLM; no address: leaf doctor and the "
            "start of training check a server that runs"
        ),
    ] = None,
) -> None:
    """Export an adapter under the names of what is to load it, and check that all of it finds its place there."""
    if target not in _TARGETS:
        raise ConfigError(f"--for is {target!r}; allowed are {', '.join(_TARGETS)}.{did_you_mean(target, _TARGETS)}")
    if target != "vllm" and (language_model or check_with):
        raise ConfigError("--language-model and --check-with go with --for vllm. Leave them out.")
    if check_with is not None and "://" in check_with:
        raise ConfigError(
            f"--check-with is {check_with}, an address; it takes an environment with vLLM, such as .venv-vllm. "
            "`leaf doctor RECIPE sampler=vllm ...` and the start of training check a server that runs."
        )
    with Busy(say, "loading PyTorch and transformers", quiet=True):
        import leaf.train.recipe  # noqa: F401  (it takes seconds)
    from leaf.model.merging import new_place
    from leaf.plugins import load_plugins
    from leaf.runs.artefact import find_artefact

    new_place(to)
    folder, config = find_artefact(source, overrides, which=adapter)
    load_plugins(config.plugins)  # they may register the model's family
    say(f"{folder}: an adapter for {config.model}")
    if target == "merged":
        from leaf.commands.merging import merge_adapter

        merge_adapter(config, folder, to)
    elif target == "peft":
        _for_peft(config, folder, to)
    else:
        _for_vllm(config, folder, to, language_model, check_with)


def _for_peft(config: Any, folder: Path, to: Path) -> None:
    """Copy what peft loads, after a look that all of it has its place in the model."""
    from leaf.files import new_directory
    from leaf.model.adapter_file import check_place, empty_model, layers_of, read_adapter
    from leaf.model.demo import resolve_model
    from leaf.model.from_recipe import projector_of
    from leaf.model.loading import find_model
    from leaf.runs.pushing import pushed_files

    _, tensors = read_adapter(folder)
    described, family, _ = find_model(resolve_model(config.model, say=say), trust_remote_code=config.trust_remote_code)
    model = empty_model(described, family)
    matrices = {name: value for name, value in tensors.items() if name.endswith((".lora_A.weight", ".lora_B.weight"))}
    for path, pair in layers_of(matrices).items():
        check_place(model, path, pair, path)
    projector = projector_of(config, folder)

    def fill(new: Path) -> None:
        for name in pushed_files(folder):
            shutil.copyfile(folder / name, new / name)
        if projector is not None:
            shutil.copyfile(projector, new / "projector.safetensors")

    new_directory(to, fill)
    say(f"{to} holds the adapter for {type(model).__name__}: PeftModel.from_pretrained(model, {str(to)!r})")
    if projector is not None:
        say(
            "projector.safetensors is no part of what peft loads: put it in with model.load_state_dict(..., "
            "strict=False), or export with --for merged"
        )
    if getattr(described, "has_lora_adapter", False):
        say("the checkpoint's own speech LoRA has to be merged into its weights first, as leaf does on loading")


def _for_vllm(config: Any, folder: Path, to: Path, language_model: bool, check_with: str | None) -> None:
    """Write an adapter for vLLM's own class, or the bare language model with an adapter for it, and check it."""
    import os

    from leaf.engines.vllm.launch import VARIABLE
    from leaf.model.demo import resolve_model
    from leaf.model.from_recipe import projector_of

    projector = projector_of(config, folder)
    check = bool(check_with or os.environ.get(VARIABLE))
    if language_model:
        from leaf.engines.vllm.folder import ADAPTER, LANGUAGE_MODEL, write_folder

        policy = load_policy(config, folder)
        with Busy(say, f"writing {to}"):
            write_folder(policy, to)
        say(f"{to}/language_model is the decoder of {config.model}, {to}/adapter the adapter under its names")
        carried = "" if projector is None else f", with the projector {projector}"
        say(f"a server of it takes prompts that leaf has embedded{carried}; `leaf serve` starts one")
        if check:
            say(_checked(policy, to / LANGUAGE_MODEL, to / ADAPTER, check_with))
        return
    if projector is not None:
        raise ModelError(
            f"The adapter goes with a trained projector ({projector}), and vLLM's own class reads the projector from "
            "the checkpoint. Export both in one checkpoint with `--for merged`, or the decoder with `--language-model`."
        )
    from leaf.engines.vllm.export import saved_adapter_for_vllm
    from leaf.engines.vllm.names import served
    from leaf.model.loading import find_model

    checkpoint, remote = resolve_model(config.model, say=say), config.trust_remote_code
    saved_adapter_for_vllm(folder, checkpoint, to, onto="speech", trust_remote_code=remote)
    _, family, _ = find_model(checkpoint, trust_remote_code=remote)
    say(f"{to} holds the adapter under the names of vLLM's own speech class. Serve it with:")
    say(f"    vllm serve {checkpoint} --enable-lora --max-lora-rank {_rank(to)} --lora-modules adapter={to}")
    if note := served(family).note:
        say(note)
    if check:
        say(_checked(load_policy(config, folder), checkpoint, to, check_with, audio=True))


def _checked(policy: Any, model: str | Path, adapter: Path, check_with: str | None, **how: bool) -> str:
    """Check an export with vLLM; one that fails is removed."""
    from leaf.engines.vllm.check import check_with_vllm
    from leaf.files import remove_directory

    try:
        return check_with_vllm(policy, model, adapter, check_with, say=say, **how)
    except ModelError:
        remove_directory(adapter)  # nobody should serve it
        raise


def _rank(adapter: Path) -> int:
    from leaf.engines.vllm.launch import largest_rank
    from leaf.files import read_json

    return largest_rank((read_json(adapter / "adapter_config.json") or {})["r"])

"""The command `leaf doctor`: can this machine run this recipe, and what has to change if it cannot?"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import peft
import torch

from leaf.config import LeafConfig, LoraFields, RunConfig
from leaf.data.recordings import row_seconds
from leaf.data.rows import stated_seconds
from leaf.engines.vllm.look import look_at_servers
from leaf.errors import AudioError, CodeRefused, ConfigError, DataError, LeafError
from leaf.memory import available_bytes
from leaf.model.budget import SHARE
from leaf.model.demo import ASSEMBLED, GIGABYTES, describe_model, model_cache, resolve_model
from leaf.model.device import pick_device, pick_dtype
from leaf.model.families import family_of
from leaf.model.family import Family
from leaf.model.footprint import Estimate, footprint_of
from leaf.model.from_recipe import planned_prompt, recipe_lora
from leaf.model.loading import lacks_package, look_up
from leaf.model.policy import Policy
from leaf.plugins import code_allowed, load_plugins
from leaf.rewards.total import rewards_from
from leaf.runs.checkpoints import space_left, space_needed
from leaf.runs.directory import run_path
from leaf.runs.sharding import layer_bytes
from leaf.train.recipe import check_targets, note_on_validation, recipe_checks

State = Literal["ok", "unsure", "fails"]
GB = 1e9
_LOOKED_AT = 50  # rows whose audio headers are read; of the other rows only those that claim to be too long


@dataclass(frozen=True)
class Finding:
    """One answer: what was checked, whether it is in order, what was found, and what to change."""

    subject: str
    state: State
    found: str
    advice: str = ""


def examine(config: RunConfig) -> Iterator[Finding]:
    """Check whether this machine can run a recipe, one finding after the other. Nothing is trained.

    The model is built without its weights, so even one that does not fit into memory can be checked. Where the code of
    the recipe may not run (leaf.plugins), what depends on it stays open.
    """
    code = [*config.plugins, *(["the checkpoint's own"] if config.trust_remote_code else [])]
    if not code or code_allowed():
        load_plugins(config.plugins)
        yield from _findings(config)
        return
    yield Finding("code", "unsure", f"{', '.join(code)}: not run", "Read it, and give --trust to run it.")
    for finding in _findings(config):
        # What the code would register is missing: a rule, a reward, a task or a family.
        open_ = finding.state == "fails" and finding.subject not in ("device", "memory", "disk")
        yield dataclasses.replace(finding, state="unsure") if open_ else finding


def _findings(config: RunConfig) -> Iterator[Finding]:
    yield from _packages()
    device = pick_device(config.device)
    yield _device(config, device)
    yield from _settings(config)
    shape: Estimate | None = None
    model_config: Any = None
    family: Family | None = None
    processor: Any = None
    try:
        model_config, family, processor = look_up_model(config)
        shape, layers = _shape(config, family, model_config, processor, device)
        yield _model(config, family)
    except LeafError as error:
        yield Finding("model", "fails", str(error))
    except (OSError, ValueError, ImportError) as error:
        advice = "Give the path of a checkpoint on this machine, or a hub id that it can reach; see `leaf families`."
        yield Finding("model", "fails", f"{config.model} cannot be looked at: {_first_line(error)}", advice)
    else:
        yield from _memory(config, shape, layers, device)
    yield from _sampler(config, model_config)
    yield from _data(config, family, processor)
    yield _disk(config, shape)


def look_up_model(config: RunConfig) -> tuple[Any, Family, Any]:
    """Find configuration, family and processor of the recipe's model; one that leaf assembles is not assembled."""
    if config.model in ASSEMBLED:
        model_config, processor = describe_model(config.model)
        return model_config, family_of(model_config), processor
    return look_up(resolve_model(config.model), trust_remote_code=config.trust_remote_code)


def _model(config: RunConfig, family: Family) -> Finding:
    found = f"{config.model}: {family.model_type}. {family.note}".rstrip(". ") + "."
    folder = model_cache() / f"{config.model}-model"
    if config.model in ASSEMBLED and not folder.exists():
        found += f" The first run assembles it: {GIGABYTES} GB in {folder}."
    return Finding("model", "ok", found)


def _packages() -> Iterator[Finding]:
    names = ("torch", "transformers", "peft", "accelerate", "datasets")
    yield Finding("packages", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in names))


def _settings(config: RunConfig) -> Iterator[Finding]:
    """Make the checks that `leaf train` makes before it loads a model."""
    for subject, check in recipe_checks(config).items():
        try:
            check()
        except CodeRefused as error:
            yield Finding(subject, "unsure", str(error))
        except LeafError as error:
            yield Finding(subject, "fails", str(error))


def _device(config: RunConfig, device: torch.device) -> Finding:
    if device.type == "cuda":
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(device)
        half = torch.cuda.is_bf16_supported()
        if config.dtype == "bfloat16" and not half:
            return Finding("device", "fails", f"{count} × {name}, which has no bfloat16", "Set dtype: float32.")
        return Finding("device", "ok", f"{count} × {name}, {available_bytes(device) / GB:.1f} GB free on the first")
    found = f"{device.type} with {torch.get_num_threads()} threads, {available_bytes(device) / GB:.1f} GB free"
    if config.dtype == "bfloat16" and pick_dtype("auto", device) != "bfloat16":
        found += ", which emulates bfloat16, several times slower"
        return Finding("device", "unsure", found, "Use dtype: auto.")
    return Finding("device", "ok", found)


def _shape(
    config: RunConfig, family: Family, model_config: Any, processor: Any, device: torch.device
) -> tuple[Estimate, list[int]]:
    """Build the model without its weights; return its memory estimate, and the bytes of each frozen layer."""
    lora = recipe_lora(config) if isinstance(config, LoraFields) else peft.LoraConfig(r=64)
    auto: Any = family.auto_model
    build = auto.from_config if hasattr(auto, "from_config") else auto._from_config
    kernel = {} if config.attention is None else {"attn_implementation": config.attention}
    try:
        with torch.device("meta"):
            model = build(model_config, dtype=getattr(torch, pick_dtype(config.dtype, device)), **kernel)
    except ImportError as error:
        raise lacks_package(config.model, error) from error
    checkpointing = config.gradient_checkpointing
    policy = Policy.wrap(model, processor, lora=lora, gradient_checkpointing=checkpointing)
    shape = footprint_of(policy)
    return dataclasses.replace(shape, heap_token=0) if device.type == "cuda" else shape, layer_bytes(policy)


def _memory(config: RunConfig, shape: Estimate, layers: list[int], device: torch.device) -> Iterator[Finding]:
    """Compute what the run needs: for one prompt with the longest completions, and for the sampler's cache."""
    available = available_bytes(device)
    prompt = planned_prompt(config)
    completions, length, prompts = 1, 256, 1
    if isinstance(config, LeafConfig):
        completions, length = config.num_completions, config.max_new_tokens
        prompts = config.prompts_per_rollout
    longest = prompt + completions * length
    update = shape.update(longest, longest, completions * length)
    cache = shape.cache(prompts * completions, prompt + length)
    parts = {
        "weights": shape.weights,
        "gradient": shape.gradient,
        "optimiser": shape.optimizer,
        f"update of one row of {longest} tokens": update,
    }
    fixed = shape.weights + shape.gradient + shape.optimizer
    need = fixed + max(update, cache if completions > 1 else 0)
    found = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in parts.items())
    if completions > 1:
        found += f", sampler's cache {cache / GB:.2f} GB (all {prompts} prompts at once, nothing shared)"
    room = SHARE * available
    if need <= room:
        yield Finding("memory", "ok", f"{found}: {need / GB:.1f} of {available / GB:.1f} GB")
        return
    advice = []
    if not config.gradient_checkpointing:
        advice.append("gradient_checkpointing: true")
    if pick_dtype(config.dtype, device) == "float32":
        advice.append("dtype: bfloat16")
    if fixed + update > room:
        advice.append("a smaller max_new_tokens or max_prompt_tokens, or fewer num_completions")
    if fixed > room:
        advice = ["a smaller model or a larger device: not even weights and optimiser fit"]
        if isinstance(config, LeafConfig) and (sharded := _sharded(fixed + update, layers, room)) is not None:
            advice.append(sharded)
    # The sampler takes fewer prompts at once until its cache fits, so only what the update needs is certain.
    state: State = "unsure" if fixed + update <= room else "fails"
    yield Finding("memory", state, f"{found}: {need / GB:.1f} of {available / GB:.1f} GB", "Use " + ", ".join(advice))


def _sampler(config: RunConfig, model_config: Any) -> Iterator[Finding]:
    """Look at the servers that are to draw completions."""
    if not isinstance(config, LeafConfig) or config.sampler == "local":
        return
    width = None if model_config is None else model_config.get_text_config(decoder=True).hidden_size
    positions = planned_prompt(config) + config.max_new_tokens
    try:
        for state, found, advice in look_at_servers(config, width, positions):
            yield Finding("sampler", state, found, advice)
    except ConfigError:
        return  # options that are wrong were found among the settings


def _sharded(need: int, layers: list[int], room: float) -> str | None:
    """Say how many devices with this much memory can hold the layers between them; None if eight cannot.

    A layer in use is in memory twice: gathered, and as FSDP2 received it.
    """
    for count in (2, 4, 8):
        each = need - sum(layers) + sum(layers) / count + 2 * max(layers, default=0)
        if each <= room:
            return (
                f"recipes/accelerate/fsdp2.yaml with {count} such devices: {each / GB:.1f} GB on each (docs/scaling.md)"
            )
    return None


def _data(config: RunConfig, family: Family | None, processor: Any) -> Iterator[Finding]:
    """Check the splits that the run reads, and the test split, which `leaf evaluate` reads."""
    from leaf.data import load

    limit = float("inf") if family is None else family.max_seconds(processor)
    read = [config.train_split, config.eval_split] if config.eval_every else [config.train_split]
    later = ["test"] if isinstance(config, LeafConfig) else []
    skip = isinstance(config, LeafConfig) and config.tolerate == "skip"
    loaded: dict[str, Any] = {}
    for split in dict.fromkeys([*read, *later]):
        bad: State = "fails" if split in read else "unsure"
        try:
            rows = loaded[split] = load(config.task, split, columns=config.columns)
            first, too_long, broken = _lengths(rows, limit, skip)
        except LeafError as error:
            advice = "" if split in read else "Only `leaf evaluate` reads it; its --split names another."
            yield Finding(f"data, {split}", bad, str(error), advice)
            continue
        found = f"{len(rows)} rows of {config.task}"
        found += f"; the first {len(first)} last {min(first):.1f} to {max(first):.1f} s" if first else ""
        found += f"; cannot be used: {len(broken)}, such as: {broken[0]}" if broken else ""
        if not too_long:
            yield Finding(f"data, {split}", "unsure" if broken else "ok", found)
            continue
        found += f"; too long: {len(too_long)}, up to {max(too_long):.1f} s"
        advice = f"This model takes {limit:g} s. Prepare the data with --max-seconds {limit:g}, or leave rows out"
        if isinstance(config, LeafConfig):
            bad = "unsure" if skip else bad
            advice += "; tolerate: skip passes over them" + (" already" if skip else "")
        yield Finding(f"data, {split}", bad, found, f"{advice}.")
    if all(split in loaded for split in read):
        yield from _use_of_rows(config, loaded[config.train_split], loaded.get(config.eval_split))


def _use_of_rows(config: RunConfig, training: Any, validation: Any) -> Iterator[Finding]:
    """Check that the rows have what rewards, metrics and stages read, and that validation is on other rows."""
    try:
        rewards = rewards_from(config) if isinstance(config, LeafConfig) else None
    except ConfigError:
        return  # a reward that is not there was found among the settings
    try:
        if rewards is not None:
            rewards.check_rows(training)
        check_targets(config, training, validation)
    except (ConfigError, DataError) as error:
        yield Finding("columns", "fails", str(error))
    if note := note_on_validation(config):
        yield Finding("validation", "unsure", note)


def _lengths(rows: Any, limit: float, skip: bool) -> tuple[list[float], list[float], list[str]]:
    """Read the seconds of the first rows, and of all that are too long, as far as rows state `seconds`.

    With `skip`, recordings whose header does not say it are left out, and why is returned as well.
    """
    first = range(min(len(rows), _LOOKED_AT))
    stated = rows.select_columns("seconds") if "seconds" in rows.column_names else []
    more = [i for i, row in enumerate(stated) if i >= len(first) and stated_seconds(row) > limit]
    looked, broken = {}, []
    for i, row in zip([*first, *more], rows.select([*first, *more]), strict=True):
        try:
            looked[i] = row_seconds(row)
        except AudioError as error:
            if not skip:
                raise
            broken.append(str(error))
    return (
        [looked[i] for i in first if i in looked],
        [seconds for seconds in looked.values() if seconds > limit],
        broken,
    )


def _disk(config: RunConfig, shape: Estimate | None) -> Finding:
    """Compare the free space with what the kept checkpoints and adapters take."""
    free = space_left(run_path(config))
    if shape is None:
        return Finding("disk", "unsure", f"{free / GB:.1f} GB free; what checkpoints take is known with the model only")
    need = space_needed(shape.gradient, config.keep_checkpoints)  # gradients are float32, as what is saved
    kept = f"{config.keep_checkpoints} checkpoints, one being written, and the adapters"
    found = f"{need / GB:.2f} GB for {kept}, {free / GB:.1f} GB free"
    if need > free:
        return Finding("disk", "fails", found, "Choose an output_dir with more room, or keep_checkpoints: 1.")
    return Finding("disk", "ok", found)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

"""Recipes: flat dataclasses with one default per field and one line of help each; unknown keys are refused.

A recipe is a YAML file of these fields. `extends: other.yaml` (one name or a list, relative to the file) lays it over
others; `key=value` on the command line lays over both.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from leaf.errors import ConfigError


def _field(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """Declare a field with its default, its line of help and, for numbers, the closed range allowed."""
    metadata = {"help": help, "low": low, "high": high}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """Fields every stage has."""

    stage: Literal["rl", "sft", "align"] = _field("rl", "what the recipe does: rl, sft or align")
    model: str = _field("demo", "checkpoint directory, hub id, `demo` (embedded model after sft) or `base` (before)")
    trust_remote_code: bool = _field(False, "allow code that ships with a checkpoint to run")
    plugins: list[str] = _field([], "Python files or modules imported first, for the families they register")
    projector: str | None = _field(None, "safetensors file with projector weights to start from")
    task: str = _field("asterisk_qa", "task name or path of a JSONL/CSV manifest")
    columns: dict[str, str] = _field({}, "manifest column names, as prompt/audio/reference: theirs")
    train_split: str = _field("train", "split to train on")
    eval_split: str = _field("validation", "split to validate on")
    train_items: int | None = _field(None, "use only the first N training rows", low=1)
    output_dir: str | None = _field(None, "run directory; default runs/<recipe name>")
    seed: int = _field(0, "seed of data order, initialisation and sampling", low=0)
    dtype: Literal["float32", "bfloat16"] = _field("float32", "precision of the frozen weights; adapters are float32")
    attention: str | None = _field(None, "attention kernel: sdpa, eager, flash_attention_2, ...; default sdpa")
    device: str = _field("auto", "auto, cpu, cuda, cuda:0, ...")
    max_steps: int = _field(100, "optimisation steps (rl: rollouts)", low=0)
    learning_rate: float = _field(5e-6, "peak learning rate of AdamW", low=0.0)
    weight_decay: float = _field(0.0, "weight decay of AdamW", low=0.0)
    schedule: Literal["cosine", "linear", "constant"] = _field("cosine", "learning-rate schedule after warm-up")
    min_lr_ratio: float = _field(0.1, "learning rate at the end, as a share of the peak", low=0.0, high=1.0)
    schedule_steps: int | None = _field(None, "steps the schedule is laid out for; default max_steps", low=1)
    warmup_steps: int = _field(0, "steps of linear warm-up", low=0)
    max_grad_norm: float = _field(1.0, "gradient norm clip", low=0.0)
    token_budget: int | None = _field(None, "padded tokens in one forward; default what memory allows", low=1)
    max_prompt_tokens: int | None = _field(
        None, "longest prompt accepted, audio included; longer ones are refused", low=1
    )
    gradient_checkpointing: bool = _field(False, "recompute activations in the backward pass")
    eval_every: int = _field(50, "validate every N steps and at the end; 0 for never", low=0)
    eval_items: int | None = _field(256, "validation rows used", low=1)
    save_every: int = _field(50, "checkpoint every N steps and at the end", low=1)
    track_with: str | None = _field(None, "tracker of Accelerate: tensorboard, wandb, trackio, ...")


@dataclass
class LoraFields:
    """Fields of the low-rank adapter on the language model."""

    lora_r: int = _field(64, "rank of the adapter", low=1)
    lora_alpha: int = _field(128, "scale of the adapter (alpha)", low=1)
    lora_dropout: float = _field(
        0.05, "dropout before the adapter; 0 saves a forward when on-policy", low=0.0, high=0.9
    )
    lora_layers: list[str] | None = _field(
        None, "linear layers of the language model that get an adapter, as q_proj; default all of attention and MLP"
    )


@dataclass
class LeafConfig(LoraFields, RunConfig):
    """Recipe of stage rl. Defaults are the published protocol where it names a value."""

    credit: str = _field("leaf", "credit rule: leaf, grpo, dr_grpo, rloo, treerl, tempo, spo, treepo")
    credit_options: dict[str, Any] = _field({}, "options of the rule, e.g. max_boundaries: 2")
    rewards: list[str] = _field(["bleu"], "reward functions by name, or package.module:function")
    reward_weights: list[float] | None = _field(None, "one weight per reward function; default all 1")
    reward_timeout: float | None = _field(None, "seconds one reward function may take per rollout", low=0.0)
    prompts_per_rollout: int = _field(6, "prompts per rollout, over all processes", low=1)
    num_completions: int = _field(8, "completions per prompt (K)", low=1)
    max_new_tokens: int = _field(200, "length limit of a completion", low=1)
    temperature: float = _field(1.0, "sampling temperature, also of the log-probabilities in the loss", low=1e-3)
    top_p: float = _field(0.9, "nucleus of the sampler", low=1e-6, high=1.0)
    completions_per_update: int | None = _field(
        None, "completions per optimiser step; default all of a rollout (on-policy); published: 6", low=1
    )
    passes_per_rollout: int = _field(1, "passes of updates over one rollout", low=1)
    clip: float = _field(0.2, "clip range of the probability ratio (epsilon)", low=0.0)
    clip_high: float | None = _field(None, "upper clip range where it differs", low=0.0)
    kl_coef: float = _field(0.02, "weight of the k3 divergence from the reference (beta); 0 saves its forward", low=0.0)
    reduction: Literal["completion_mean", "token_mean", "constant"] = _field(
        "completion_mean", "how token losses are averaged; constant divides by max_new_tokens (Dr. GRPO)"
    )
    eval_greedy: bool = _field(False, "validate greedily instead of by sampling")
    eval_temperature: float = _field(0.9, "temperature of sampled validation", low=1e-3)
    eval_top_p: float = _field(0.9, "nucleus of sampled validation", low=1e-6, high=1.0)
    best_metric: str = _field("bleu", "validation metric that chooses the best adapter")
    record_every: int = _field(10, "write sampled groups with their trees every N steps; 0 for never", low=0)


@dataclass
class SftConfig(LoraFields, RunConfig):
    """Recipe of stage sft: supervised warm start on references, same policy."""

    stage: Literal["rl", "sft", "align"] = _field("sft", "what the recipe does")
    batch_size: int = _field(4, "recordings per optimiser step, each with all its rows", low=1)
    train_projector: bool = _field(True, "train the projector next to the adapter")
    projector_learning_rate: float | None = _field(None, "learning rate of the projector; default as the rest", low=0.0)
    extra_tasks: list[str] = _field([], "further tasks mixed in, row by row")
    max_new_tokens: int = _field(200, "length limit of a completion in validation", low=1)
    best_metric: str = _field("bleu", "validation metric that is reported")


@dataclass
class AlignConfig(RunConfig):
    """Recipe of stage align: train the projector with a CTC loss against the language model's token embeddings."""

    stage: Literal["rl", "sft", "align"] = _field("align", "what the recipe does")
    batch_size: int = _field(16, "utterances per optimiser step", low=1)


STAGES: dict[str, type[RunConfig]] = {"rl": LeafConfig, "sft": SftConfig, "align": AlignConfig}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe file with its `extends` chain and `key=value` overrides into the dataclass of its stage."""
    values = _read(Path(path), ())
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"The override {override!r} is not of the form key=value.")
        values[key.strip()] = _yaml(value, f"the override {override!r}")
    values.setdefault("output_dir", f"runs/{Path(path).stem}")
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build the dataclass of `values["stage"]` (default rl), checking names, types and ranges."""
    stage = values.get("stage", "rl")
    if stage not in STAGES:
        raise ConfigError(f"The stage {stage!r} is unknown; allowed are {', '.join(STAGES)}.")
    config_class = STAGES[stage]
    known = {f.name: f for f in dataclasses.fields(config_class)}
    hints = typing.get_type_hints(config_class)
    checked = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"The key {key!r} is unknown in a recipe of stage {stage}.{hint} `leaf recipe {stage}` lists all keys."
            )
        checked[key] = _check(key, value, hints[key], known[key].metadata)
    return config_class(**checked)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a recipe as a plain dictionary that `from_dict` takes back."""
    return dataclasses.asdict(config)


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"The recipe {path.name} extends itself, through {' -> '.join(p.name for p in chain)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from error
    values = _yaml(text, f"the recipe {path.name}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path.name} holds a {type(values).__name__}; it must be `key: value` lines.")
    parents = values.pop("extends", [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged.update(_read(path.parent / str(parent), (*chain, path)))
    return merged | values


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot parse {what} as YAML: {' '.join(str(error).split())}.") from error


def _check(key: str, value: Any, hint: Any, metadata: Any) -> Any:
    """Return the value in the type asked for, or raise ConfigError saying what is allowed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key} is {value!r}; allowed are {', '.join(map(str, arguments))}.")
        return value
    if origin is list and isinstance(value, list | tuple):
        return [_check(f"{key}[{i}]", item, arguments[0], {}) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(name): _check(f"{key}.{name}", item, arguments[1], {}) for name, item in value.items()}
    if hint is float:
        value = _number(value)
    if origin is None and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        low, high = metadata.get("low"), metadata.get("high")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{key} is {value!r}; allowed is a number {allowed}.")
        return value
    wanted = getattr(origin or hint, "__name__", str(hint))
    raise ConfigError(f"{key} is {value!r}, a {type(value).__name__}; allowed is a value of type {wanted}.")


def _number(value: Any) -> Any:
    """Return ints and YAML's `1e-4` (which it reads as a string) as floats, anything else as it came."""
    if isinstance(value, bool):
        return value
    try:
        return float(value) if isinstance(value, int | float | str) else value
    except ValueError:
        return value

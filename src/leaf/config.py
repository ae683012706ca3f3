"""Recipes: flat dataclasses with one default per field and one line of help each; unknown keys are refused.

A recipe is a YAML file of these fields. `extends: other.yaml` (one name or a list, relative to the file) lays it over
others; on the command line further recipes and then `key=value` are laid over it.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from leaf.errors import ConfigError, did_you_mean, shown

MOST_PARENTS = 16  # recipes that one extends at once, and how deep
MOST_VALUES = 10_000  # values in one recipe, aliases unfolded
LARGEST = 2**53  # up to here whole numbers and floating point agree
_FROM_PYTHON = " (from Python)"


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
    plugins: list[str] = _field([], "Python files or modules imported first, for what they register")
    projector: str | None = _field(None, "safetensors file with projector weights to start from")
    task: str = _field("asterisk_qa", "task name, or path of a manifest (JSONL, CSV, TSV) or a prepared folder")
    columns: dict[str, str] = _field({}, "manifest column names, as prompt/audio/reference: theirs")
    train_split: str = _field("train", "split to train on")
    eval_split: str = _field("validation", "split to validate on")
    train_items: int | None = _field(None, "use only the first N training rows", low=1)
    output_dir: str | None = _field(None, "run directory; default runs/<recipe name>")
    seed: int = _field(0, "seed of data order, initialisation and sampling", low=0, high=2**32 - 1)
    dtype: Literal["float32", "bfloat16", "auto"] = _field(
        "float32",
        "precision of the frozen weights; auto: bfloat16 where the device computes in it; adapters are float32",
    )
    attention: str | None = _field(None, "attention kernel: sdpa, eager, flash_attention_2, ...; default sdpa")
    device: str = _field("auto", "auto, cpu, cuda, cuda:0, ...")
    max_steps: int = _field(100, "optimisation steps (rl: rollouts)", low=0)
    learning_rate: float = _field(5e-6, "peak learning rate of AdamW", low=0.0)
    weight_decay: float = _field(0.0, "weight decay of AdamW", low=0.0)
    schedule: Literal["cosine", "linear", "constant"] = _field("cosine", "learning-rate schedule after warm-up")
    min_lr_ratio: float = _field(0.1, "learning rate at the end, as a share of the peak", low=0.0, high=1.0)
    schedule_steps: int | None = _field(None, "steps the schedule is laid out for; default max_steps", low=1)
    warmup_steps: int = _field(0, "optimiser updates of linear warm-up", low=0)
    max_grad_norm: float = _field(1.0, "gradient norm clip", low=1e-6)
    max_skipped_steps: int = _field(
        5, "optimiser steps in a row that may be skipped because loss or gradient is NaN or infinite", low=0
    )
    token_budget: int | None = _field(None, "padded tokens in one forward; default what memory allows", low=1)
    max_prompt_tokens: int | None = _field(
        None, "longest prompt accepted, audio included; longer ones are refused", low=1
    )
    gradient_checkpointing: bool = _field(False, "recompute activations in the backward pass")
    eval_every: int = _field(50, "validate every N steps and at the end; 0 for never, without validation rows", low=0)
    eval_items: int | None = _field(256, "validation rows used", low=1)
    save_every: int = _field(50, "checkpoint every N steps and at the end", low=1)
    keep_checkpoints: int = _field(2, "checkpoints kept, the newest ones; the others stand in for a damaged one", low=1)
    track_with: str | None = _field(None, "tracker of Accelerate: tensorboard, wandb, trackio, ...; stage rl only")

    def __post_init__(self) -> None:
        """Hold every field to its type and range, whether it comes from a recipe or from Python."""
        hints = typing.get_type_hints(type(self))
        for one in dataclasses.fields(self):
            setattr(self, one.name, _check(one.name, getattr(self, one.name), hints[one.name], one.metadata))
        if self.stage != type(self).stage:
            name = type(self).__name__
            raise ConfigError(f"The stage is {self.stage}, and {name} is of stage {type(self).stage}. Leave stage out.")


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
    """Recipe of stage rl. Defaults are the published protocol where it names a value, but for five.

    Published are `dtype` bfloat16, `completions_per_update` 6, `max_prompt_tokens` 256 (Qwen2-Audio 1024) without the
    audio, which counts here, `eval_every` 200 (and so `save_every`), and `epochs` in place of `max_steps`. The whole
    protocol is `load_recipe("recipes/published/leaf.yaml", ...)`, with the recipes of a model and a task beside it.
    """

    credit: str = _field("leaf", "credit rule: leaf, grpo, dr_grpo, rloo, treerl, tempo, spo, treepo, shrunken")
    credit_options: dict[str, Any] = _field({}, "options of the rule, e.g. max_boundaries: 2")
    rewards: list[str] = _field(["bleu"], "reward functions by name, or package.module:function, path/file.py:function")
    reward_weights: list[float] | None = _field(None, "one weight per reward function; default all 1")
    reward_timeout: float | None = _field(None, "seconds one reward function may take per rollout", low=1e-3, high=1e6)
    on_reward_error: Literal["stop", "skip"] = _field(
        "stop", "a reward function fails: stop the run, or go on with its completions unscored"
    )
    on_bad_audio: Literal["stop", "skip"] = _field(
        "stop", "a row has no usable audio: stop, or put the next row in its place (`leaf evaluate`: leave it out)"
    )
    reward_options: dict[str, Any] = _field(
        {}, "options of reward functions by name, as judge: {url: http://localhost:8000/v1, model: name}"
    )
    epochs: int | None = _field(
        None, "passes over the training rows, in place of max_steps; each begins optimiser and schedule afresh", low=1
    )
    prompts_per_rollout: int = _field(6, "prompts per rollout, over all processes", low=1)
    num_completions: int = _field(8, "completions per prompt (K)", low=1)
    max_new_tokens: int = _field(200, "length limit of a completion", low=1)
    temperature: float = _field(1.0, "sampling temperature, also of the log-probabilities in the loss", low=1e-3)
    top_p: float = _field(0.9, "nucleus of the sampler", low=1e-6, high=1.0)
    completions_per_update: int | None = _field(
        None, "completions per optimiser step; default all of a rollout (on-policy); published: 6", low=1
    )
    passes_per_rollout: int = _field(1, "passes of updates over one rollout", low=1)
    clip: float = _field(0.2, "clip range of the probability ratio (epsilon)", low=0.0, high=1 - 1e-6)
    clip_high: float | None = _field(None, "upper clip range where it differs", low=0.0)
    kl_coef: float = _field(0.02, "weight of the k3 divergence from the reference (beta); 0 saves its forward", low=0.0)
    reduction: Literal["completion_mean", "token_mean", "constant"] = _field(
        "completion_mean", "how token losses are averaged; constant divides by max_new_tokens (Dr. GRPO)"
    )
    eval_greedy: bool = _field(False, "validate greedily instead of by sampling")
    eval_temperature: float = _field(0.9, "temperature of sampled validation", low=1e-3)
    eval_top_p: float = _field(0.9, "nucleus of sampled validation", low=1e-6, high=1.0)
    eval_batch_size: int = _field(16, "rows decoded at once in validation and evaluation", low=1)
    best_metric: str = _field("bleu", "validation metric that chooses the best adapter")
    record_every: int = _field(10, "write sampled groups with their trees every N steps; 0 for never", low=0)


RLConfig = LeafConfig  # one class, two names: it also runs GRPO and the other rules


@dataclass
class SftConfig(LoraFields, RunConfig):
    """Recipe of stage sft: supervised warm start on references, same policy."""

    stage: Literal["rl", "sft", "align"] = _field("sft", "what the recipe does")
    batch_size: int = _field(4, "recordings per optimiser step, each with all its rows", low=1)
    train_projector: bool = _field(True, "train the projector next to the adapter")
    projector_learning_rate: float | None = _field(None, "learning rate of the projector; default as the rest", low=0.0)
    extra_tasks: list[str] = _field([], "further tasks mixed in, row by row")
    max_new_tokens: int = _field(200, "length limit of a completion in validation", low=1)
    best_metric: str = _field("bleu", "validation metric that is reported beside bleu, exact_match and chrf")


@dataclass
class AlignConfig(RunConfig):
    """Recipe of stage align: train the projector with a CTC loss against the language model's token embeddings."""

    stage: Literal["rl", "sft", "align"] = _field("align", "what the recipe does")
    batch_size: int = _field(16, "utterances per optimiser step", low=1)


STAGES: dict[str, type[RunConfig]] = {"rl": LeafConfig, "sft": SftConfig, "align": AlignConfig}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe with its `extends` chain, further recipes and `key=value` into the dataclass of its stage.

    Args:
        path: the recipe.
        overrides: in order: further recipe files (*.yaml), each laid over what came before, and key=value pairs, laid
            over all files. The default run directory is named after the files.
    """
    overrides = overrides or []
    files = [Path(path), *(Path(text) for text in overrides if "=" not in text and text.endswith((".yaml", ".yml")))]
    values: dict[str, Any] = {}
    for file in files:
        values |= _read(file, ())
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals:
            values[key.strip()] = _yaml(value, f"the override {shown(override)}")
        elif Path(override) not in files:
            raise ConfigError(f"{shown(override)} is neither key=value nor a further recipe (.yaml).")
    values.setdefault("output_dir", f"runs/{'-'.join(file.stem for file in files)}")
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build the dataclass of `values["stage"]` (default rl), which checks types and ranges; names are checked here."""
    stage = values.get("stage", "rl")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(
            f"The stage {shown(stage)} is unknown; allowed are {', '.join(STAGES)}.{did_you_mean(stage, STAGES)}"
        )
    config_class = STAGES[stage]
    known = [f.name for f in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"The key {shown(key)} is unknown in a recipe of stage {stage}.{did_you_mean(key, known)} "
                f"`leaf recipe {stage}` lists all keys."
            )
    return config_class(**values)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a recipe as a plain dictionary that `from_dict` takes back."""
    return dataclasses.asdict(config)


def from_python(name: str) -> str:
    """Return what the recipe of a run holds in place of an object that a script gave it: its name, marked as one."""
    return f"{name}{_FROM_PYTHON}"


def refuse_from_python(key: str, value: Any) -> None:
    """Refuse to run a recipe's value that only names an object of the script which began the run (`from_python`).

    Raises:
        ConfigError: it is one.
    """
    if str(value).endswith(_FROM_PYTHON):
        raise ConfigError(
            f"{key} is {shown(value)}: a script began that run with an object of its own, which a recipe can only "
            f"name. Set {key} to what a recipe can hold, or go on from that script."
        )


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    try:
        path = path.resolve()
        text = path.read_text(encoding="utf-8") if path not in chain else ""
    except (OSError, ValueError, RuntimeError) as error:  # not UTF-8, a NUL character in the path, a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"The recipe {shown(str(path))} cannot be read: {reason}.") from error
    if path in chain:
        raise ConfigError(f"The recipe {path.name} extends itself, through {' -> '.join(p.name for p in chain)}.")
    if len(chain) >= MOST_PARENTS:
        raise ConfigError(f"The recipe {chain[0].name} extends others {len(chain)} deep; {MOST_PARENTS} are allowed.")
    values = _yaml(text, f"the recipe {path.name}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path.name} holds a {type(values).__name__}; it must be `key: value` lines.")
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents) or len(parents) > MOST_PARENTS:
        raise ConfigError(
            f"extends in {path.name} is {shown(parents)}; give the name of a recipe, or a list of at most "
            f"{MOST_PARENTS}."
        )
    merged: dict[str, Any] = {}
    for parent in parents:
        merged.update(_read(path.parent / parent, (*chain, path)))
    return merged | values


class _Loader(yaml.SafeLoader):
    """The safe loader (no code is run), that also refuses keys given twice and what would unfold without end."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Build a document after a look at its size with all aliases unfolded."""
        self.measured: dict[int, float] = {}
        if self._unfolded(node) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases unfold to more than {MOST_VALUES} values, or without end", node.start_mark
            )
        return super().construct_document(node)

    def _unfolded(self, node: yaml.Node) -> float:
        """Return how many values a node stands for; infinity if it contains itself."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in self.measured:
            self.measured[id(node)] = math.inf  # for whoever meets it inside itself
            inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            self.measured[id(node)] = 1 + sum(self._unfolded(part) for part in inner)
        return self.measured[id(node)]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; PyYAML would take the last of two equal keys."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(key.value)} stands there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ConfigError(f"Cannot parse {what} as YAML: it is nested too deeply.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot parse {what} as YAML: {' '.join(str(error).split())[:500]}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML hands !!int, !!timestamp and the like to int() and datetime() and lets their errors through.
        raise ConfigError(f"Cannot parse {what} as YAML: a value is not of its type ({error}).") from error


def _check(key: str, value: Any, hint: Any, metadata: Any) -> Any:
    """Return the value in the type asked for, or raise ConfigError saying what is allowed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(key, value)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key} is {shown(value)}; allowed are {', '.join(map(str, arguments))}.")
        return value
    if origin is list and isinstance(value, list | tuple):
        return [_check(f"{key}[{i}]", item, arguments[0], {}) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {_name(key, name): _check(f"{key}.{name}", item, arguments[1], {}) for name, item in value.items()}
    if hint is float:
        value = _number(value)
    if origin is None and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        low, high = metadata.get("low"), metadata.get("high")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{key} is {shown(value)}; allowed is a number {allowed}.")
        return _plain(key, value)
    wanted = getattr(origin or hint, "__name__", str(hint))
    raise ConfigError(f"{key} is {shown(value)}, a {type(value).__name__}; allowed is a value of type {wanted}.")


def _plain(key: str, value: Any) -> Any:
    """Return a value that YAML and JSON write and read back alike: finite numbers, text in Unicode, lists, mappings."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        if not abs(value) <= LARGEST:  # not NaN either
            raise ConfigError(f"{key} is {shown(value)}; allowed are finite numbers up to {LARGEST:g}.")
        return value
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigError(f"{key} is {shown(value)}; NUL and half characters (lone surrogates) are not allowed.")
        return value
    if isinstance(value, list | tuple):
        return [_plain(f"{key}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {_name(key, name): _plain(f"{key}.{name}", item) for name, item in value.items()}
    raise ConfigError(
        f"{key} is {shown(value)}, a {type(value).__name__}; allowed are numbers, text, lists and mappings."
    )


def _name(key: str, name: Any) -> str:
    """Return the name of an entry of a mapping."""
    if not isinstance(name, str):
        raise ConfigError(f"{key} has the name {shown(name)}, a {type(name).__name__}; names are text.")
    return _plain(key, name)


def _number(value: Any) -> Any:
    """Return ints and YAML's `1e-4` (which it reads as a string) as floats, anything else as it came."""
    if isinstance(value, bool):
        return value
    try:
        return float(value) if isinstance(value, int | float | str) else value
    except (ValueError, OverflowError):
        return value

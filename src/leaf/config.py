"""Recipes: flat dataclasses whose fields have one default, one line of help and a group each; unknown keys are refused.

A recipe is a YAML file of these fields. `extends: other.yaml` lays it over others: one name or a list, relative to the
file, or of recipes that come with leaf. On the command line further recipes and then `key=value` are laid over it.
"""

import dataclasses
import os
import typing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from leaf.errors import ConfigError, did_you_mean, shown
from leaf.fields import checked, declare
from leaf.shipped import find_recipe, recipe_meant
from leaf.yaml_text import parse_yaml, read_yaml

STEPS = 100  # of a run whose recipe names neither max_steps nor epochs
GROUPS = ("model and data", "sampling", "rewards and credit", "update", "adapter", "evaluation", "run")
# Of a judge or a sampler: where servers are and how they are asked. What they say depends on the other options.
SERVER_OPTIONS = ("url", "urls", "adapter_dir", "key_env", "concurrency", "timeout_s", "retries", "start_s", "wait_s")
_data, _sampling, _credit, _update, _adapter, _evaluation, _run = (partial(declare, group) for group in GROUPS)


@dataclass
class RunConfig:
    """Fields that every stage has."""

    stage: Literal["rl", "sft", "align"] = _run("rl", "what the recipe does: rl, sft or align")
    model: str = _data(
        "demo",
        "checkpoint directory, hub id, `demo` (embedded model after sft) or `base` (before it)",
        common=True,
        path=True,
    )
    trust_remote_code: bool = _data(False, "run code that comes with a checkpoint", resume="free")
    projector: str | None = _data(None, "safetensors file with projector weights to start from", path=True)
    attention: str | None = _data(
        None, "attention kernel: sdpa, eager, flash_attention_2, ...; default sdpa", resume="bits"
    )
    dtype: Literal["float32", "bfloat16", "auto"] = _data(
        "float32",
        "precision of the frozen weights; auto: bfloat16 where the device computes in it; adapters are float32",
    )
    task: str = _data(
        "asterisk_qa", "task, or path of a manifest (JSONL, CSV, TSV) or a prepared folder", common=True, path=True
    )
    columns: dict[str, str] = _data({}, "columns of a manifest, ours: theirs, e.g. reference: answer")
    train_split: str = _data("train", "split to train on")
    train_items: int | None = _data(None, "use only the first N training rows", low=1)
    max_prompt_tokens: int | None = _data(
        None, "longest prompt in tokens, audio included; longer ones are refused", low=1, resume="grow"
    )
    max_steps: int | None = _update(
        None, f"optimiser steps (rl: rollouts); default {STEPS}", low=0, common=True, resume="grow"
    )
    learning_rate: float = _update(5e-6, "peak learning rate of AdamW", low=0.0, common=True)
    weight_decay: float = _update(0.0, "weight decay of AdamW", low=0.0)
    adam_betas: list[float] = _update(
        [0.9, 0.999], "decay of AdamW's two moments, each in [0, 1); published: 0.9, 0.95"
    )
    schedule: Literal["cosine", "linear", "constant", "published"] = _update(
        "cosine", "learning-rate schedule after warm-up; published: four cycles, as LEAF's code has them"
    )
    min_lr_ratio: float = _update(0.1, "learning rate at the end, as a share of the peak", low=0.0, high=1.0)
    warmup_steps: int = _update(0, "optimiser updates of linear warm-up", low=0)
    max_grad_norm: float = _update(1.0, "largest gradient norm; a longer gradient is scaled down to it", low=1e-6)
    token_budget: int | None = _update(
        None, "padded tokens in one forward pass; default what memory allows", low=1, resume="bits"
    )
    gradient_checkpointing: bool = _update(
        False, "save memory: compute activations again in the backward pass", resume="bits"
    )
    eval_every: int = _evaluation(
        50,
        "validate every N steps and at the end; 0 for never, without validation rows",
        low=0,
        common=True,
        resume="free",
    )
    eval_split: str = _evaluation("validation", "split to validate on")
    eval_items: int | None = _evaluation(256, "use only the first N validation rows", low=1)
    eval_items_seed: int | None = _evaluation(None, "draw these N rows with a seed, in place of the first ones", low=0)
    output_dir: str | None = _run(
        None, "run directory; default runs/<recipe name>", common=True, resume="free", path=True
    )
    seed: int = _run(0, "seed of data order, initial adapter and sampling", low=0, high=2**32 - 1, common=True)
    device: str = _run("auto", "auto, cpu, cuda, cuda:0, ...", resume="bits")
    save_every: int = _run(50, "write a checkpoint every N steps and at the end", low=1, resume="free")
    keep_checkpoints: int = _run(
        2,
        "checkpoints to keep, the newest ones; an older one is used where the newest is damaged",
        low=1,
        resume="free",
    )
    track_with: str | None = _run(
        None, "tracker of Accelerate: tensorboard, wandb, trackio, ...; stage rl only", resume="free"
    )
    plugins: list[str] = _run(
        [], "Python files or modules to import first: they may register tasks, rules and rewards", path=True
    )

    def __post_init__(self) -> None:
        """Check every field's type and range, whether it comes from a recipe or from Python."""
        hints = typing.get_type_hints(type(self))
        for one in dataclasses.fields(self):
            setattr(self, one.name, checked(one.name, getattr(self, one.name), hints[one.name], one.metadata))
        if self.stage != type(self).stage:
            name = type(self).__name__
            raise ConfigError(f"The stage is {self.stage}, and {name} is of stage {type(self).stage}. Leave stage out.")
        self._set_length()

    def _set_length(self) -> None:
        """Give a run the default length where the recipe names none."""
        if self.max_steps is None:
            self.max_steps = STEPS


@dataclass
class LoraFields:
    """Fields of the low-rank adapter on the language model."""

    lora_r: int = _adapter(64, "rank of the adapter", low=1, high=2**14, common=True)
    lora_alpha: int = _adapter(128, "scale of the adapter (alpha)", low=1)
    lora_dropout: float = _adapter(
        0.05, "dropout before the adapter; 0 saves a forward pass when on-policy", low=0.0, high=0.9
    )
    lora_layers: list[str] | None = _adapter(
        None, "linear layers of the language model that get an adapter, e.g. q_proj; default all of attention and MLP"
    )
    layers_to_transform: list[int] | None = _adapter(
        None, "numbers of the decoder's layers that get an adapter, from 0; upper ones alone save time; default all"
    )


@dataclass
class LeafConfig(LoraFields, RunConfig):
    """Recipe of stage rl. The defaults are the published protocol where it names a value, except for nine.

    Published are `dtype` bfloat16, `adam_betas` 0.9 and 0.95, `schedule` published, `completions_per_update` 6,
    `mix_prompts` 2, `max_prompt_tokens` 256 (Qwen2-Audio 1024), `eval_every` 200 (and so `save_every`), `eval_top_k`
    50, and `epochs` in place of `max_steps`. The whole protocol is `load_recipe("recipes/published/leaf.yaml", ...)`,
    with the recipes of a model and a task beside it.
    """

    prompts_per_rollout: int = _sampling(6, "prompts per rollout, over all processes", low=1, high=2**16, common=True)
    num_completions: int = _sampling(  # at least two, because rules compare them
        8, "completions per prompt (K)", low=2, high=2**16, common=True
    )
    max_new_tokens: int = _sampling(200, "longest completion in tokens", low=1, high=2**20, common=True)
    rollout: Literal["independent", "distinct"] = _sampling(
        "independent",
        "draw completions independently, or distinct ones: without replacement, weighed by their credit rule; top_p: 1",
        common=True,
    )
    dynamic_sampling: int = _sampling(
        0, "rounds of further prompts to draw, at most, until enough groups have rewards that differ (DAPO)", low=0
    )
    keep_groups: float = _sampling(
        1.0, "learn only from this share of a step's groups, those whose rewards vary most", low=1e-6, high=1.0
    )
    temperature: float = _sampling(1.0, "sampling temperature, also of the log-probabilities in the loss", low=1e-3)
    top_p: float = _sampling(0.9, "nucleus of the sampler; 1 for distinct ones", low=1e-6, high=1.0)
    sampler: Literal["local", "vllm"] = _sampling("local", "what draws: the policy itself, or servers of vLLM")
    sampler_options: dict[str, Any] = _sampling(
        {}, "options of the sampler, e.g. {url: http://localhost:8000}", free_options=SERVER_OPTIONS
    )
    credit: str = _credit(
        "leaf",
        "credit rule: leaf, grpo, dr_grpo, rloo, max_rl, treerl, tempo, spo, treepo, shrunken; with all groups of "
        "a step leaf_batch, reinforce_pp, reinforce_pp_baseline, treepo_whitened, gtpo, grpo_s; for distinct "
        "completions unordered_set, rescaled_set, importance, nbest, and leaf, tempo, spo, shrunken",
        common=True,
    )
    credit_options: dict[str, Any] = _credit({}, "options of the rule, e.g. max_boundaries: 2")
    tree_key: Literal["tokens", "words"] = _credit(
        "tokens", "completions share a node where their tokens agree, or their words; compute is shared by tokens"
    )
    uncertain_share: float = _credit(
        1.0,
        "credit only this share of a step's tokens, those of highest entropy; 0.2 in 2506.01939",
        low=1e-6,
        high=1.0,
    )
    rewards: list[str] = _credit(
        ["bleu"], "reward functions by name, or package.module:function, path/file.py:function", common=True, path=True
    )
    reward_weights: list[float] | None = _credit(None, "one weight per reward function; default all 1")
    reward_options: dict[str, dict[str, Any]] = _credit(
        {},
        "options of reward functions by name, e.g. judge: {url: http://localhost:8000/v1, model: name}",
        free_options=SERVER_OPTIONS,
    )
    epochs: int | None = _update(
        None,
        "passes over the training rows, in place of max_steps; each starts the optimiser and the schedule anew",
        low=1,
        resume="grow",
    )
    completions_per_update: int | None = _update(
        None, "completions per optimiser step; default all of a rollout (on-policy); published: 6", low=1
    )
    mix_prompts: int = _update(
        1, "lanes of prompts that every update takes equally many completions from; published: 2", low=1
    )
    passes_per_rollout: int = _update(1, "passes of updates over one rollout", low=1)
    loss: str = _update("clip", "surrogate of the policy gradient: clip, gspo, cispo, sapo")
    loss_options: dict[str, Any] = _update({}, "options of the loss, e.g. tau_neg: 1.05 of sapo")
    clip: float = _update(0.2, "clip range of the probability ratio (epsilon)", low=0.0, high=1 - 1e-6)
    clip_high: float | None = _update(None, "upper clip range where it differs", low=0.0)
    kl_coef: float = _update(
        0.02, "weight of the k3 divergence from the reference (beta); 0 saves its forward pass", low=0.0, common=True
    )
    reduction: Literal["completion_mean", "token_mean", "constant"] = _update(
        "completion_mean", "how token losses are averaged; constant divides by max_new_tokens (Dr. GRPO)"
    )
    eval_greedy: bool = _evaluation(False, "validate with greedy decoding instead of sampling")
    eval_temperature: float = _evaluation(0.9, "temperature of sampled validation", low=1e-3)
    eval_top_p: float = _evaluation(0.9, "nucleus of sampled validation", low=1e-6, high=1.0)
    eval_top_k: int | None = _evaluation(
        None, "most tokens that sampled validation keeps; default all; published: 50", low=1
    )
    eval_batch_size: int = _evaluation(
        16, "rows decoded at once in validation and evaluation", low=1, high=2**16, resume="bits"
    )
    best_metric: str = _evaluation(
        "bleu",
        "what chooses the best adapter in validation: a metric, as bleu or bleu:tokenize=zh; `reward`, the weighted "
        "sum of the rewards; or the name of one of them",
        common=True,
    )
    tolerate: Literal["stop", "skip"] = _run(
        "stop",
        "when a reward function fails or a row has no usable audio: stop the run, or skip (the completions stay "
        "unscored, the next row takes its place; validation and `leaf evaluate` leave the row out) and count it",
        resume="free",
    )
    record_every: int = _run(
        10, "write sampled groups with their trees every N steps; 0 for never", low=0, resume="free"
    )

    def _set_length(self) -> None:
        if self.epochs is None:
            super()._set_length()
        elif self.max_steps is not None:
            raise ConfigError(
                f"max_steps is {self.max_steps} and epochs is {self.epochs}; a run has one of them. Leave one out, or "
                "set it to null."
            )


RLConfig = LeafConfig  # one class, two names: it also runs GRPO and the other rules


@dataclass
class SftConfig(LoraFields, RunConfig):
    """Recipe of stage sft: supervised warm start on references, same policy."""

    stage: Literal["rl", "sft", "align"] = _run("sft", "what the recipe does")
    extra_tasks: list[str] = _data([], "further tasks whose training rows are mixed in", common=True, path=True)
    batch_size: int = _update(4, "recordings of a step, each with all its rows", low=1, high=2**16, common=True)
    train_projector: bool = _update(True, "train the projector next to the adapter", common=True)
    projector_learning_rate: float | None = _update(
        None, "learning rate of the projector; default as the rest", low=0.0
    )
    max_new_tokens: int = _evaluation(200, "longest completion in tokens in validation", low=1, high=2**20, common=True)
    best_metric: str = _evaluation("bleu", "validation metric that is reported beside bleu, exact_match and chrf")


@dataclass
class AlignConfig(RunConfig):
    """Recipe of stage align: train the projector with a CTC loss against the language model's token embeddings."""

    stage: Literal["rl", "sft", "align"] = _run("align", "what the recipe does")
    batch_size: int = _update(16, "utterances per optimiser step", low=1, high=2**16, common=True)


STAGES: dict[str, type[RunConfig]] = {"rl": LeafConfig, "sft": SftConfig, "align": AlignConfig}
FROM_PYTHON = " (from Python)"  # marks the name of an object that a script passed, where people read it
# Keys of version 0.1, and what to do in their place.
GONE = {
    "on_reward_error": "It is `tolerate` now.",
    "on_bad_audio": "It is `tolerate` now.",
    "reward_timeout": "It is gone: leave it out. A judge has `timeout_s` in `reward_options`.",
    "schedule_steps": "It is gone: the schedule covers all of max_steps, or each of `epochs`.",
    "max_skipped_steps": "It is gone: leave it out. A few skipped steps in a row are always allowed.",
}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe with its `extends` chain, further recipes and `key=value` into the dataclass of its stage.

    Args:
        path: the recipe; one that comes with leaf is found by its name `recipes/...` from any folder.
        overrides: in order: further recipe files (*.yaml), each laid over what came before, and key=value pairs, laid
            over all files. The default run directory is named after the files.
    """
    overrides = overrides or []
    files = [Path(path), *(Path(text) for text in overrides if "=" not in text and text.endswith((".yaml", ".yml")))]
    values: dict[str, Any] = {}
    for file in files:
        values |= _read(_real(find_recipe(file)), ())
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals:
            values[key.strip()] = parse_yaml(value, f"the override {shown(override)}")
        elif Path(override) not in files:
            raise ConfigError(f"{shown(override)} is neither key=value nor a further recipe (.yaml).")
    if values.get("output_dir") is None:
        values["output_dir"] = f"runs/{'-'.join(file.stem for file in files)}"
    return from_dict(values)


def overridden_keys(overrides: list[str] | None) -> set[str]:
    """List the keys that further recipes and key=value pairs set."""
    keys: set[str] = set()
    for text in overrides or []:
        key, equals, _ = text.partition("=")
        keys |= {key.strip()} if equals else {*_read(_real(find_recipe(text)), ())}
    return keys


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build the dataclass of `values["stage"]` (default rl). Keys are checked here, values by the dataclass."""
    config_class = stage_class(values.get("stage", "rl"))
    known = [one.name for one in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            stage = config_class.stage
            hint = f" {GONE[key]}" if key in GONE else did_you_mean(key, known)
            raise ConfigError(
                f"The key {shown(key)} is unknown in a recipe of stage {stage}.{hint} `leaf recipe {stage} --all` "
                "lists all keys."
            )
    return config_class(**values)


def stage_class(stage: object) -> type[RunConfig]:
    """Find the dataclass of a stage."""
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(
            f"The stage {shown(stage)} is unknown; allowed are {', '.join(STAGES)}.{did_you_mean(stage, STAGES)}"
        )
    return STAGES[stage]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Turn a recipe into a plain dictionary that `from_dict` takes back."""
    return dataclasses.asdict(config)


def of_version_0_1(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Translate the recipe that version 0.1 wrote into a run directory; a recipe of today stays as it is.

    Returns:
        The recipe, and by key the names of what a script had passed in place of its values (leaf.runs.provenance),
        which 0.1 marked in the recipe itself.
    """
    recipe = {key: value for key, value in values.items() if key not in GONE and not _marked(value)}
    if "skip" in (values.get("on_reward_error"), values.get("on_bad_audio")):
        recipe["tolerate"] = "skip"
    if values.get("epochs") is not None:  # 0.1 wrote down what they come to as well
        recipe["max_steps"] = None
    return recipe, {key: _unmarked(value) for key, value in values.items() if _marked(value)}


def _marked(value: Any) -> bool:
    return any(str(one).endswith(FROM_PYTHON) for one in (value if isinstance(value, list) else [value]))


def _unmarked(value: Any) -> Any:
    return [_unmarked(one) for one in value] if isinstance(value, list) else value.removesuffix(FROM_PYTHON)


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path in chain:
        raise ConfigError(f"The recipe {path.name} extends itself, through {' -> '.join(p.name for p in chain)}.")
    try:
        values = read_yaml(path) or {}
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error.strerror}.{recipe_meant(path)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path.name} holds a {type(values).__name__}; it must be `key: value` lines.")
    if path.name == "recipe.yaml" and path.with_name("versions.json").is_file():  # of a run directory
        values, _ = of_version_0_1(values)
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"extends in {path.name} is {shown(parents)}; give the name of a recipe, or a list of names.")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged |= _read(_real(find_recipe(parent, path.parent)), (*chain, path))
    return merged | values


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # of one file always the same, so that a circle of `extends` is seen

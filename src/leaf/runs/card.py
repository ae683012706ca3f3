"""The model card of a saved adapter: its README.md, with base, recipe, data, scores and how to load it.

It is written beside every adapter of a run, from the run directory alone, so that it needs no network. Paths of the
machine and addresses of judges stay out of it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from leaf.config import FROM_PYTHON, LeafConfig, RunConfig, to_dict
from leaf.data import TASKS
from leaf.files import read_json
from leaf.runs.directory import RunDirectory

_PRIVATE = ("url", "key_env", "cache", "template")  # options of a judge
_OF_THE_MACHINE = ("output_dir", "device", "track_with")


def write_card(
    folder: Path, run: RunDirectory, step: int, model: str, *, own_adapter: bool = False, serving: str = ""
) -> None:
    """Write the card of an adapter.

    Args:
        folder: has the adapter.
        run: what it was trained in.
        step: after which it was saved.
        model: the base model's class in transformers, as the snippet loads it.
        own_adapter: whether the checkpoint's own speech LoRA was merged first.
        serving: how the adapter is served.
    """
    recipe = run.what_ran()
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(settings.get("base_model_name_or_path") or recipe.model)
    scores, at = _scores(run, step)
    name = f"{_last_part(base).rpartition('/')[2]}-{_method(recipe)}"
    parts = [
        _front(name, base, recipe, scores),
        f"# {name}\n\n{_summary(base, recipe, step)}",
        f"## Load it\n\n{_snippets(base, recipe, model, own_adapter)}",
        *([f"## Serve it\n\n{serving}"] if serving else []),
        f"## Scores\n\n{_table(scores, at, recipe)}{_signatures(run, scores)}",
        f"## Recipe\n\n````yaml\n{yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True)}````",
        f"## Versions\n\n{_versions(run)}",
        f"## Licence\n\n{_licence(base, recipe)}",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def shareable(recipe: RunConfig) -> dict[str, Any]:
    """Write a recipe without paths of this machine: of an absolute one the last part stays."""
    values = {key: value for key, value in to_dict(recipe).items() if key not in _OF_THE_MACHINE and value is not None}
    return {key: _without_paths(value) for key, value in values.items()}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items() if key not in _PRIVATE}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    return _last_part(value) if isinstance(value, str) else value


def _last_part(text: str) -> str:
    return Path(text).name if text.startswith(("/", "~")) or ".." in Path(text).parts else text


def hub_name(base: str) -> str | None:
    """Give the name of a model on the hub; None for one of this machine."""
    return base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None


def _front(name: str, base: str, recipe: RunConfig, scores: Mapping[str, Any]) -> str:
    """Write the card's metadata as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    task = _last_part(recipe.task)
    results = [
        EvalResult(
            task_type="audio-text-to-text",
            dataset_type=re.sub(r"[^\w.-]+", "-", task),
            dataset_name=task,
            dataset_split=recipe.eval_split,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, (value, _, _) in scores.items()
    ]
    data = ModelCardData(
        base_model=hub_name(base),
        library_name="peft",
        model_name=name,
        tags=["leaf", "lora", "speech", _method(recipe)],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _method(recipe: RunConfig) -> str:
    return getattr(recipe, "credit", recipe.stage).removesuffix(FROM_PYTHON)


def _summary(base: str, recipe: RunConfig, step: int) -> str:
    how = f"stage {recipe.stage}"
    if isinstance(recipe, LeafConfig):
        rewards = ", ".join(_last_part(one) for one in recipe.rewards)
        how = f"reinforcement learning with the credit rule {recipe.credit} and the rewards {rewards}"
    return (
        f"A LoRA adapter for `{_last_part(base)}`, trained on `{_last_part(recipe.task)}` (split {recipe.train_split}) "
        f"with leaf: {how}, saved after step {step}."
    )


def _snippets(base: str, recipe: RunConfig, model: str, own_adapter: bool) -> str:
    name = hub_name(base) or f"path/to/{_last_part(base)}"
    remote = ", trust_remote_code=True" if recipe.trust_remote_code else ""
    kind = "AutoModel" if remote else model
    lines = [
        "With transformers and peft:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import AutoProcessor, {kind}",
        "",
        f'model = {kind}.from_pretrained("{name}"{remote})',
        'model = PeftModel.from_pretrained(model, "path/or/id/of/this/adapter")',
        f'processor = AutoProcessor.from_pretrained("{name}"{remote})',
        "```",
        "",
        "With leaf:",
        "",
        "```python",
        "from leaf import Policy",
        "",
        f'policy = Policy.load("{name}", adapter="path/of/this/adapter")',
        "```",
    ]
    if own_adapter:
        lines += ["", "Merge the checkpoint's own speech LoRA into its weights first, as leaf does on loading."]
    if getattr(recipe, "train_projector", False) or recipe.projector:
        lines += [
            "",
            "A trained projector goes with it (`projector.safetensors`); `leaf merge` puts both into the model.",
        ]
    return "\n".join(lines)


def _scores(run: RunDirectory, step: int) -> tuple[dict[str, tuple[float, float | None, float | None]], int | None]:
    """Read the scores of the last validation up to a step, with their intervals, and that validation's step."""
    rows = [row for row in run.lines("validation.jsonl") if row["step"] <= step]
    if not rows:
        return {}, None
    last = rows[-1]
    names = [
        name
        for name in last
        if name not in ("step", "truncated", "length_mean") and not name.endswith(("/low", "/high"))
    ]
    found = {name: (last[name], last.get(f"{name}/low"), last.get(f"{name}/high")) for name in names}
    return {name: values for name, values in found.items() if isinstance(values[0], int | float)}, last["step"]


def _table(scores: Mapping[str, Any], at: int | None, recipe: RunConfig) -> str:
    if not scores:
        return "This adapter was not validated."
    lines = ["| score | value | 95 % interval |", "|---|---|---|"]
    for name, (value, low, high) in scores.items():
        lines.append(f"| {name} | {value:.4g} | {'' if low is None else f'{low:.4g} to {high:.4g}'} |")
    which = "the first" if recipe.eval_items_seed is None else f"with seed {recipe.eval_items_seed} drawn"
    items = f"{which} {recipe.eval_items} rows" if recipe.eval_items else "all rows"
    return "\n".join(
        [*lines, "", f"After step {at}, on {items} of the split {recipe.eval_split} of `{_last_part(recipe.task)}`."]
    )


def _signatures(run: RunDirectory, scores: Mapping[str, Any]) -> str:
    known = (read_json(run.path / "signatures.json") or {}).get("signatures")
    if not isinstance(known, Mapping):  # lost or damaged; the next validation writes it again
        return ""
    return "".join(f"\n- `{known[name]}`" for name in scores if name in known).replace("\n-", "\n\n-", 1)


def _versions(run: RunDirectory) -> str:
    versions = run.versions()
    if versions is None:  # a damaged file is the resume's concern, which names it
        return "Not recorded."
    return ", ".join(f"{name} {value}" for name, value in versions.items() if name not in ("machine", "cpus") and value)


def _licence(base: str, recipe: RunConfig) -> str:
    prepared = Path(recipe.task) / "prepared.json"
    data = TASKS[recipe.task].licence if recipe.task in TASKS else None
    if prepared.is_file():
        data = (read_json(prepared) or {}).get("licence")
    return (
        f"The licence of `{_last_part(base)}` holds for this adapter too; that of the data is: "
        f"{data or 'not known to leaf'}. Check both before you share it."
    )

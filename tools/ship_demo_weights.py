"""Put the result of stages align and sft into the package: projector and adapter as float16, and what made them.

python tools/ship_demo_weights.py runs/align runs/sft
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from leaf.model.demo import SHIPPED


def halve(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.to(torch.float16).contiguous() for k, v in load_file(source).items()}, target, {"format": "pt"})


def main() -> None:
    align, sft = Path(sys.argv[1]), Path(sys.argv[2])
    halve(sft / "last/projector.safetensors", SHIPPED / "projector.safetensors")
    halve(sft / "last/adapter_model.safetensors", SHIPPED / "adapter/adapter_model.safetensors")
    config = json.loads((sft / "last/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "base"  # no path of the machine that trained it
    (SHIPPED / "adapter/adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for run in (align, sft):
        shutil.copy(run / "recipe.yaml", SHIPPED / f"{run.name}-recipe.yaml")
    files = sorted(SHIPPED.rglob("*.safetensors"))
    record = {str(file.relative_to(SHIPPED)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    validation = {run.name: json.loads((run / "validation.jsonl").read_text().splitlines()[-1]) for run in (align, sft)}
    (SHIPPED / "made_by.json").write_text(json.dumps({"sha256": record, "validation": validation}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What test_sharding.py runs in two processes whose launcher asks for FSDP2.

python -m accelerate.commands.launch --config_file recipes/accelerate/fsdp2.yaml -m tests.helpers.sharding_worker FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from tests.helpers import processes_worker as worker

# Uneven prompts and parts without completions; a process without credit; one that runs out of memory in an update.
NAMES = ("off_policy", "one_sided", "short_of_memory")


def shares(one):
    """Return how many values of the sharded layers there are, and how many of them this process holds."""
    sharded = [p for p in one.policy.parameters() if isinstance(p, DTensor)]
    return {
        "all": sum(p.numel() for p in sharded),
        "held": sum(p.to_local().numel() for p in sharded),
        "storage": sum(p.to_local().untyped_storage().nbytes() // p.element_size() for p in sharded),
        "trained": sum(isinstance(p, DTensor) for p in one.parameters),
        "whole layer": one.processes._shards.held,
        "gathers": one.processes._shards.gathers,
    }


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), torch.distributed.get_rank
    worker.run(folder, NAMES)
    last = worker.trainer(folder, "begun_alone", worker.letters, worker.SCENARIOS["on_policy"])
    before = shares(last)
    last.train(resume_from_checkpoint=True)
    (folder / f"shares-{rank()}.json").write_text(json.dumps({"before": before, "after": shares(last)}))


if __name__ == "__main__":
    main()
    worker.end(Path(sys.argv[1]))

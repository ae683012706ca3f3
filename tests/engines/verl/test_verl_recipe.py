"""The launch script: verl's command line composes its arguments, and verl's own checks accept them."""

# pyright: reportMissingImports=false

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leaf.shipped import FOLDER

SCRIPT = FOLDER / "engines" / "verl-glm-asr.sh"


@pytest.fixture(scope="module")
def config():
    """Let verl print the job that it makes of the script's arguments."""
    from omegaconf import OmegaConf

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = ["bash", str(SCRIPT), "/data/train.parquet", "/data/validation.parquet", "data.train_batch_size=256"]
    done = subprocess.run(
        [*run, "--cfg", "job"], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return OmegaConf.create(done.stdout[done.stdout.index("actor_rollout_ref:") :])


def test_verl_accepts_the_arguments(config):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == 16
    assert config.data.train_files == ["/data/train.parquet"]
    assert config.data.train_batch_size == 256  # what comes last counts


def test_the_trainer_rewards_and_data_set_of_the_script_are_leafs(config):
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.utils.dataset.rl_dataset import get_dataset_class

    import leaf.engines.verl.plugin  # noqa: F401
    from leaf.engines.verl.dataset import LeafDataset
    from leaf.engines.verl.trainer import LeafTrainerSync

    reward = get_custom_reward_fn(config)
    scored = reward(data_source="my", solution_str="press one", ground_truth="press one", extra_info={"columns": {}})
    assert scored == {"score": pytest.approx(1.0), "bleu": pytest.approx(1.0)}
    assert get_dataset_class(config.data) is LeafDataset
    made = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    assert isinstance(made, LeafTrainerSync)
    assert made.credit.options == {"max_boundaries": 2}
    assert made.exact


def test_without_files_it_says_what_to_give():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr[:16]) == (2, "verl-glm-asr.sh:")

"""What the tests share: verl's configuration, Ray with TransferQueue, and groups of completions."""

# pyright: reportMissingImports=false

import importlib.util
import os

import pytest
import torch

HERE = importlib.util.find_spec("verl") is not None
MODES = ["trainer.v1.trainer_mode=leaf_sync", "algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.name=vllm"]
STEPS = 3  # of the whole training


def pytest_collection_modifyitems(items):
    for item in items:
        if "engines/verl" in item.path.as_posix():
            item.add_marker(pytest.mark.verl)
            item.add_marker(pytest.mark.filterwarnings("default"))  # verl's and Ray's own
            if not HERE:
                item.add_marker(pytest.mark.skip(reason="verl is not in this environment; run `make test-verl`"))


@pytest.fixture(scope="session")
def compose():
    """Compose verl's own configuration with overrides, as its command line does."""
    import hydra

    def composed(*overrides):
        with hydra.initialize_config_module("verl.trainer.config", version_base=None):
            return hydra.compose("ppo_trainer", [*MODES, *overrides])

    return composed


@pytest.fixture(scope="session")
def queue():
    """Start Ray and TransferQueue, as verl's task runner does."""
    import ray
    import transfer_queue
    from omegaconf import OmegaConf

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")  # a busy machine takes longer than Ray's own 30 s
    # With fewer CPUs declared than storage units TransferQueue waits for ever.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    transfer_queue.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 2}}}))
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


def completion(uid, tokens, reward, seed, **more):
    """Make the fields that verl's agent loops put into the queue for one completion."""
    draws = torch.Generator().manual_seed(seed)
    length = len(tokens)
    scores = torch.zeros(length)
    scores[-1] = reward
    return {
        "uid": uid,
        "responses": torch.tensor(tokens),
        "response_mask": torch.ones(length, dtype=torch.int64),
        "rm_scores": scores,
        "rollout_log_probs": -torch.rand(length, generator=draws),
        "old_log_probs": -torch.rand(length, generator=draws),
        "entropy": torch.rand(length, generator=draws),
        **more,
    }


def put(queue, rows, partition, keys=None, tags=None):
    """Put completions into the queue under verl's keys, {uid}_{session}_{piece}."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    keys = keys or [f"{row['uid']}_{i}_0" for i, row in enumerate(rows)]
    tags = tags or [{"status": "success"}] * len(rows)
    return queue.kv_batch_put(keys=keys, partition_id=partition, fields=list_of_dict_to_tensordict(rows), tags=tags)


@pytest.fixture
def groups():
    """Two groups whose rows stand mixed, as verl's balancing leaves them."""
    return [
        completion("a", [1, 2, 3], 1.0, 0),
        completion("b", [5, 5], 0.0, 1),
        completion("a", [1, 2, 4, 4, 9], 0.0, 2),
        completion("b", [5, 6, 7, 8], 0.75, 3),
        completion("a", [1, 3], 0.5, 4),
        completion("b", [6], 0.25, 5),
    ]

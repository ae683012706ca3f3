"""A whole training through verl: its task runner, agent and reward loops, queue, FSDP engine and sync of weights."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.engines.verl.conftest import STEPS


@pytest.mark.timeout(1800)
def test_a_tiny_glm_asr_trains_through_verl_with_leafs_credit_and_rewards(tmp_path):
    log = tmp_path / "log.jsonl"
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": "tests.engines.verl.on_cpu,leaf.engines.verl.plugin",
        "VERL_FILE_LOGGER_PATH": str(log),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_raylet_start_wait_time_s": "400",
        "RAY_memory_monitor_refresh_ms": "0",  # on a busy machine it would end our processes for what others take
        "OMP_NUM_THREADS": "1",
    }
    run = [sys.executable, "-W", "ignore", "-m", "tests.engines.verl.train_tiny", str(tmp_path)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    steps = [json.loads(line)["data"] for line in log.read_text().splitlines()]
    steps = [step for step in steps if "training/global_step" in step]
    assert len(steps) == STEPS
    for step in steps:
        assert 0 <= step["critic/score/mean"] <= 1
        assert step["actor/grad_norm"] > 0
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"]
        assert step["training/rollout_probs_diff_max"] < 0.1  # of weights that verl rounds to bfloat16 on their way
    # Nothing is rounded before the first update: the server hears and reads what the actor scores.
    assert steps[0]["training/rollout_probs_diff_max"] < 1e-5
    changed = re.findall(r"server at version (\d+): (\d+) weights changed, (\d+) outside", done.stdout + done.stderr)
    assert [(int(version), int(outside)) for version, _, outside in changed] == [(i, 0) for i in range(STEPS + 1)]
    assert [int(count) > 0 for _, count, _ in changed] == [False, True, True, True]

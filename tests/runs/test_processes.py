"""Two processes over gloo give what one gives: completions, losses, gradients (as the adapter they make), records."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.errors import ConfigError
from leaf.files import read_rows
from leaf.runs.processes import Processes
from tests.helpers import processes_worker as worker
from tests.helpers.processes import ROOT, assert_trained_alike, begin_alone, launch
from tests.helpers.project import save, write_manifest
from tests.helpers.tiny import tiny_model

DDP = str(ROOT / "recipes/accelerate/ddp.yaml")
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of all scenarios, run in this process and in two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    worker.run(one)
    begin_alone(two)
    launch([*LAUNCH, "-m", "tests.helpers.processes_worker", str(two)])
    return one, two


@pytest.mark.parametrize("name", worker.SCENARIOS)
def test_two_processes_train_as_one(runs, name):
    one, two = (folder / name for folder in runs)
    assert_trained_alike(one, two)
    ours, theirs = read_rows(one / "groups.jsonl"), read_rows(two / "groups.jsonl")
    for key in ("id", "completions"):
        assert [group[key] for group in ours] == [group[key] for group in theirs]


def test_one_process_brings_the_weights_to_a_sampler_elsewhere_before_the_others_draw(runs):
    first, second = (json.loads((runs[1] / f"pushed-{rank}.json").read_text()) for rank in (0, 1))
    assert [version for version, _ in first] == [version for version, _ in second] == [-1, 0, 0, 1, 2, 2, 3]
    assert all(push for _, push in first)
    assert not any(push for _, push in second)


def test_a_run_whose_servers_stay_away_from_one_process_is_saved_by_all(runs):
    other, own = ((runs[1] / f"lost-{rank}.txt").read_text() for rank in (0, 1))
    assert own.startswith("RunInterrupted: No server answered for 9 s")
    assert other.startswith(
        "RunInterrupted: Process 1 of 2 failed, so all stop. There: Unavailable: No server answered"
    )
    for text in (own, other):
        assert "the run is saved after step 2 of 3" in text
    assert json.loads((runs[1] / "lost/checkpoints/step-000002/state.json").read_text())["step"] == 2


def test_the_scenarios_are_what_they_are_meant_to_be(runs):
    one, _ = runs
    unscored = [record["unscored"] for record in read_rows(one / "one_sided/metrics.jsonl")]
    assert max(unscored) >= 12  # of 16: three of four prompts, all those of a process
    assert any(record["clip_fraction"] > 0 for record in read_rows(one / "off_policy/metrics.jsonl"))
    assert all(record["kl"] is None for record in read_rows(one / "constant/metrics.jsonl"))
    assert [record["skipped_steps"] for record in read_rows(one / "not_finite/metrics.jsonl")] == [0, 1, 0]


def test_a_process_that_runs_out_of_memory_tries_again_alone(runs):
    # test_two_processes_train_as_one compares what came of it: nothing is lost or counted twice.
    _, two = runs
    facts = json.loads((two / "ran_out.json").read_text())
    tried, failed, again = facts["forwards"][:3]
    assert tried == 0
    assert failed > 0  # gradients of the first micro-batch were there
    assert again == 0  # and were dropped
    assert facts["token_budget"] < 80
    assert all(record["token_budget"] == 80 for record in read_rows(two / "short_of_memory/metrics.jsonl"))


def test_processes_take_the_smallest_budget_that_one_of_them_measured(runs):
    _, two = runs
    assert [json.loads((two / f"budget-{rank}.json").read_text()) for rank in range(2)] == [[320, 80], [80, 80]]


def test_two_processes_go_on_where_one_stopped(runs):
    one, two = runs
    records = read_rows(two / "begun_alone/metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    uninterrupted = read_rows(one / "on_policy/metrics.jsonl")[2]
    assert records[2]["loss"] == pytest.approx(uninterrupted["loss"], rel=1e-5, abs=1e-6)
    assert records[2]["reward_mean"] == pytest.approx(uninterrupted["reward_mean"])


def test_a_signal_to_one_process_saves_and_stops_both_and_they_go_on(runs):
    one, two = runs
    assert (two / "asked-0.txt").read_text().startswith("RunInterrupted: Another process asked to stop: the run is sav")
    assert (two / "asked-1.txt").read_text().startswith("RunInterrupted: SIGTERM asked to stop: the run is saved after")
    records = read_rows(two / "asked/metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    uninterrupted = read_rows(one / "on_policy/metrics.jsonl")[2]
    for key in ("loss", "grad_norm", "reward_mean"):
        assert records[2][key] == pytest.approx(uninterrupted[key], rel=1e-5, abs=1e-6)


def test_what_fails_in_one_process_stops_all_and_is_named(runs):
    _, two = runs
    assert (two / "unlogged-0.txt").read_text() == "OSError: no room"
    assert (two / "unlogged-1.txt").read_text() == (
        "RunError: Process 0 of 2 failed, so all stop. There: OSError: no room"
    )
    assert (two / "error-0.txt").read_text().startswith("RunError: Process 1 of 2 failed, so all stop. There: RewardE")
    assert (two / "error-1.txt").read_text().startswith("RewardError: The reward function failing raised ValueError")
    assert "prompts_per_rollout is 1 for 2 processes" in (two / "few-1.txt").read_text()


def test_a_process_that_was_given_something_else_is_refused_in_all_by_its_number(runs):
    _, two = runs
    for what, said in {
        "recipe": "another recipe's max_steps than process 0: 4, not 3. It differs in 1 more. Start all",
        "rows": "another training rows than process 0: '5 rows, ",
        "model": "another model than process 0: ",
        "reward": "another code of the reward reward than process 0: 'mine.py#",
    }.items():
        texts = [(two / f"unlike-{what}-{rank}.txt").read_text() for rank in (0, 1)]
        assert texts[0] == texts[1]
        assert texts[0].startswith(f"RunError: Process 1 of 2 was given {said}"), texts[0]


def test_processes_that_resume_from_different_checkpoints_are_refused_in_all(runs):
    _, two = runs
    for what, there in {"older": "'that of step 2 (", "damaged": "'that of step 2 (", "absent": "'none'"}.items():
        texts = [(two / f"resumed-{what}-{rank}.txt").read_text() for rank in (0, 1)]
        assert texts[0] == texts[1]
        wanted = f"RunError: Process 1 of 2 was given another checkpoint to continue from than process 0: {there}"
        assert texts[0].startswith(wanted), texts[0]
        assert "not 'that of step 3 (" in texts[0]


def test_the_main_process_says_what_the_others_met(runs):
    _, two = runs
    said, others = (json.loads((two / f"said-{rank}.json").read_text()) for rank in (0, 1))
    at = next(i for i, line in enumerate(said) if line.startswith("step 1, process 1"))
    audio, reward, record = said[at:]
    assert audio.startswith("step 1, process 1: left out, the next row takes its place: Row '3': The audio file")
    assert "broken.wav" in audio
    assert reward.startswith("step 1, process 1: left unscored: The reward function failing raised ValueError: no")
    assert record == "record 1 8"
    assert others == []


def test_no_thread_of_the_group_is_left_to_abort_a_process_that_ends(runs):
    _, two = runs
    assert [json.loads((two / f"threads-{rank}.json").read_text()) for rank in range(2)] == [[], []]


def test_the_launcher_trains_from_the_shell_as_one_process_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = tiny_model()
    save(model, processor, "model")
    write_manifest(tmp_path / "data.jsonl", splits=("train", "validation"))
    recipe = {
        "model": "model",
        "task": "data.jsonl",
        "device": "cpu",
        "lora_r": 2,
        "lora_dropout": 0.0,
        "max_new_tokens": 5,
        "prompts_per_rollout": 2,
        "num_completions": 3,
        "max_steps": 2,
        "eval_every": 2,
        "eval_items": 1,
        "rewards": ["chrf"],
        "plugins": ["here.py"],
    }
    Path("here.py").write_text("import os\nopen('process-' + os.environ.get('RANK', 'alone'), 'w').close()\n")
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert CliRunner().invoke(app, ["train", "recipe.yaml", "output_dir=one"]).exit_code == 0
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    configuration = ["--config_file", DDP, "--main_process_port", "0"]
    said = launch([*accelerate, *configuration, "-m", "leaf", "train", "recipe.yaml", "output_dir=two"], tmp_path)
    assert sorted(path.name for path in Path().glob("process-*")) == ["process-0", "process-1", "process-alone"]
    assert said.stdout.count("step 2/2  reward") == 1  # one process speaks
    assert said.stdout.count("the run is in two") == 1
    for mine, other in zip(read_rows(Path("one/metrics.jsonl")), read_rows(Path("two/metrics.jsonl")), strict=True):
        for key in ("loss", "reward_mean", "kl", "grad_norm", "length_mean"):
            assert other[key] == pytest.approx(mine[key], rel=1e-5, abs=1e-6)


def test_deepspeed_is_refused_with_what_to_use_instead():
    class DeepSpeed:
        distributed_type = DistributedType.DEEPSPEED

    with pytest.raises(ConfigError, match=r"In place of DeepSpeed ZeRO-2 use recipes/accelerate/ddp.yaml.*fsdp2.yaml"):
        Processes(DeepSpeed())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FSDP_VERSION", "1", "fsdp_version is 1; leaf shards with version 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "sets fsdp_cpu_ram_efficient_loading, which leaf does not have"),
        ("FSDP_OFFLOAD_PARAMS", "true", "sets fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "sets fsdp_activation_checkpointing"),
    ],
)
def test_options_of_fsdp_that_are_not_there_are_refused(monkeypatch, variable, value, said):
    class Sharded:
        distributed_type = DistributedType.FSDP

    for name, given in {"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", variable: value}.items():
        monkeypatch.setenv(name, given)
    with pytest.raises(ConfigError, match=said):
        Processes(Sharded())  # type: ignore[arg-type]


def test_alone_everything_is_the_identity():
    class Alone:
        distributed_type, process_index, num_processes, device = DistributedType.NO, 0, 1, torch.device("cpu")

    alone = Processes(Alone())  # type: ignore[arg-type]
    assert list(alone.positions(3)) == [0, 1, 2]
    assert alone.sum([1.5, math.inf]) == [1.5, math.inf]
    assert alone.max({"a": 2.0}) == {"a": 2.0}
    assert alone.gather("x") == ["x"]
    assert alone.together(lambda: 7) == 7
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.add_gradients([parameter])
    assert parameter.grad is None

"""Trackers get what TRL's users look for, under TRL's names, and one run however often it is resumed."""

import json
import re
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from leaf import RLTrainer
from leaf.config import LeafConfig
from leaf.credit import credit_rule
from leaf.model.from_recipe import recipe_lora
from leaf.model.policy import Policy
from leaf.rewards.total import Rewards
from leaf.train.tracking import TRL_NAMES, _options, flat
from tests.helpers import tiny
from tests.helpers.training import length_reward, lines, recipe, trainer


class Recorder(GeneralTracker):
    """A tracker of Accelerate's own kind that keeps what it is given."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.started, self.finished = 0, 0
        self.config: dict = {}
        self.logged: list[tuple[int | None, dict]] = []
        self.tables: list[dict] = []

    @property
    def tracker(self):
        return self

    def start(self):
        self.started += 1

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))

    def log_table(self, table_name, columns=None, data=None, dataframe=None, step=None, **kwargs):
        self.tables.append({"name": table_name, "columns": columns, "data": data, "step": step})

    def finish(self):
        self.finished += 1


def brief(completions, **columns):
    return [1 / (1 + len(text)) for text in completions]


def test_a_tracker_gets_recipe_scalars_and_completions(tmp_path):
    recorder = Recorder()
    config = recipe(tmp_path, max_steps=2, record_every=2, reward_weights=[1.0, 2.0])
    rows = tiny.rows(3)
    policy = Policy.wrap(*tiny.tiny_model(), lora=recipe_lora(config))
    parts = (Rewards([length_reward, brief], weights=[1.0, 2.0]), credit_rule("leaf"), config, rows, rows[:2])
    accelerator = Accelerator(cpu=True, log_with=recorder)
    run = RLTrainer(policy, *parts, accelerator=accelerator, say=lambda line: None).train()
    assert (recorder.started, recorder.finished) == (1, 1)
    assert recorder.config["learning_rate"] == 1e-2
    assert recorder.config["reward_weights"] == "[1.0, 2.0]"
    assert all(isinstance(value, bool | int | float | str) for value in recorder.config.values())
    metrics = lines(run.path, "metrics.jsonl")
    steps = {step: values for step, values in recorder.logged if "reward" in values}
    for record in metrics:
        logged = steps[record["step"]]
        for name, theirs in TRL_NAMES.items():
            assert logged[theirs] == record[name]
        for name in ("rewards/brief/mean", "rewards/brief/std", "kl", "entropy", "loss", "learning_rate", "grad_norm"):
            assert logged[name] == record[name]
        assert "reward_mean" not in logged
    validations = [(step, values) for step, values in recorder.logged if "eval/bleu" in values]
    assert [step for step, _ in validations] == [0, 2]
    assert {"eval/reward", "eval/rewards/brief/mean", "eval/chrf"} <= validations[0][1].keys()
    tables = {table["step"]: table for table in recorder.tables}
    assert list(tables) == [1, 2]
    columns = ["step", "prompt", "completion", "reward", "length_reward", "brief", "advantage"]
    assert tables[1]["columns"] == columns
    groups = [group for group in lines(run.path, "groups.jsonl") if group["step"] == 1]
    assert len(tables[1]["data"]) == 8
    for row, (group, k) in zip(tables[1]["data"], [(group, k) for group in groups for k in range(4)], strict=True):
        values = dict(zip(columns, row, strict=True))
        assert values["prompt"] == group["prompt"]
        assert values["completion"] == group["completions"][k]
        assert values["reward"] == pytest.approx(group["rewards"][k])
        assert values["brief"] == pytest.approx(group["rewards_by_function"]["brief"][k])
        advantages = group["advantages"][k]
        assert values["advantage"] == pytest.approx(sum(advantages) / len(advantages), abs=1e-4)


def _events(path: Path):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(path))
    events.Reload()
    return events


def test_tensorboard_has_one_run_of_a_run_that_was_resumed(tmp_path):
    config = recipe(tmp_path, track_with="tensorboard", max_steps=2, eval_every=1)
    trainer(config).train()
    longer = recipe(tmp_path, track_with="tensorboard", max_steps=4, eval_every=1)
    run = trainer(longer).train(resume_from_checkpoint=True)
    (folder,) = [path for path in run.path.iterdir() if path.is_dir() and any(path.glob("events.*"))]
    scalars = _events(run.path)
    names = [name for name, tags in scalars.Runs().items() if "reward" in tags["scalars"]]
    assert names == [folder.name]
    assert [event.step for event in scalars.Scalars(folder.name, "reward")] == [1, 2, 3, 4]
    assert [event.step for event in scalars.Scalars(folder.name, "eval/bleu")] == [0, 1, 2, 3, 4]
    assert {"rewards/length_reward/mean", "frac_reward_zero_std", "completions/mean_length", "step_time"} <= set(
        scalars.Runs()[folder.name]["scalars"]
    )
    (text,) = {name for name in scalars.Runs()[folder.name]["tensors"] if "completions" in name}
    table = scalars.Tensors(folder.name, text)[0].tensor_proto.string_val[0].decode()
    assert table.startswith("| step | prompt | completion | reward | advantage |\n| --- |")
    group = lines(run.path, "groups.jsonl")[0]
    assert f"{group['rewards'][0]:.3f}" in table.splitlines()[2]
    hparams = list(folder.rglob("hparams.yml"))
    assert len(hparams) == 1  # stored once, with the first start
    assert re.search(r"^learning_rate: 0.01$", hparams[0].read_text(), re.MULTILINE)


def test_a_resumed_run_is_the_same_one_for_every_tracker(tmp_path):
    run = trainer(recipe(tmp_path, track_with="tensorboard", max_steps=1, eval_every=0)).train()
    identity = json.loads((run.path / "tracker.json").read_text())
    trainer(recipe(tmp_path, track_with="tensorboard", max_steps=2, eval_every=0)).train(resume_from_checkpoint=True)
    assert json.loads((run.path / "tracker.json").read_text()) == identity
    first, resumed = _options("run", identity, 0), _options("run", identity, 1)
    assert resumed["tensorboard"] == {"purge_step": 2}
    for name in ("wandb", "trackio", "swanlab", "comet_ml"):
        assert first[name] == resumed[name]
    assert first["wandb"] == {"name": "run", "id": identity["id"], "resume": "allow"}
    assert _options("run", {**identity, "mlflow": "m"}, 1)["mlflow"]["run_id"] == "m"


def test_a_damaged_identity_of_the_trackers_is_said_and_written_anew(tmp_path):
    run = trainer(recipe(tmp_path, track_with="tensorboard", max_steps=1, eval_every=0)).train()
    (run.path / "tracker.json").write_text("[1]")
    said = []
    again = trainer(recipe(tmp_path, track_with="tensorboard", max_steps=2, eval_every=0))
    again.say = said.append
    again.train(resume_from_checkpoint=True)
    assert f"{run.path / 'tracker.json'} is damaged, so the trackers' runs begin anew" in said
    assert len(json.loads((run.path / "tracker.json").read_text())["id"]) == 32


def test_a_recipe_in_plain_values():
    given = flat({"rewards": ["bleu"], "reward_options": {"bleu": {"tokenize": "zh"}}, "seed": 1, "projector": None})
    assert given == {"rewards": '["bleu"]', "reward_options": '{"bleu": {"tokenize": "zh"}}', "seed": 1}
    assert flat(vars(LeafConfig()))["kl_coef"] == 0.02

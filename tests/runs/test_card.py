"""The model card of every saved adapter, and pushing one to a hub (a server on the loopback that speaks its HTTP)."""

import json
import re
import shutil
import socket
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.config import LeafConfig
from leaf.errors import RunError
from leaf.runs.card import hub_name, shareable
from leaf.runs.directory import RunDirectory
from leaf.runs.pushing import path_of_base, push_run
from tests.helpers.hub_server import hub_server
from tests.helpers.training import recipe, trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    one = trainer(recipe(tmp_path_factory.mktemp("card"), max_steps=2, eval_every=1))
    one.policy.base_name = "org/speech-model"
    run = one.train()
    return one, run


@pytest.fixture
def hub(monkeypatch):
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        yield server


def test_every_adapter_of_a_run_has_a_card(trained):
    _, run = trained
    validations = {row["step"]: row for row in run.lines("validation.jsonl")}
    for name in ("best", "last"):
        card: Any = ModelCard.load(run.path / name / "README.md")
        assert card.text.lstrip().startswith("# speech-model-leaf\n")
        assert card.data.base_model == "org/speech-model"
        assert card.data.library_name == "peft"
        (step,) = map(int, re.findall(r"saved after step (\d+)", card.text))
        scores = validations[step]
        assert card.data.eval_results is not None
        shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert shown["chrf"] == pytest.approx(scores["chrf"], abs=1e-3)
        assert shown["reward"] == pytest.approx(scores["reward"], abs=1e-3)
        low, high = scores["chrf/low"], scores["chrf/high"]
        assert f"| chrf | {scores['chrf']:.4g} | {low:.4g} to {high:.4g} |" in card.text
        assert "- `chrf|nrefs:1|case:mixed|" in card.text
        assert "- `reward|1*length_reward|" in card.text
        for said in (
            "from transformers import AutoProcessor, AudioFlamingo3ForConditionalGeneration",
            'PeftModel.from_pretrained(model, "path/or/id/of/this/adapter")',
            'Policy.load("org/speech-model", adapter=',
            "served as it is, this adapter does nothing. Export it first:",
            "leaf export ADAPTER --for vllm --to EXPORTED",
            "export it with --language-model.\nOr",
            "learning_rate: 0.01",
            "leaf-speech ",
            "length_reward",
            "The licence of `org/speech-model` holds for this adapter too; that of the data is: not known to leaf",
        ):
            assert said in card.text
        assert "More Information Needed" not in card.text
        assert str(run.path.parent) not in card.text


def test_the_card_keeps_paths_and_addresses_of_the_machine_out():
    config = LeafConfig(
        model="/home/me/models/tiny",
        task="../data/my.jsonl",
        output_dir="/scratch/me/run",
        rewards=["bleu", "/home/me/my_rewards.py:polite", "judge"],
        reward_options={
            "judge": {"url": "http://10.0.0.1:8000/v1", "model": "m", "key_env": "SECRET", "kind": "direct"}
        },
    )
    shown = shareable(config)
    assert (shown["model"], shown["task"]) == ("tiny", "my.jsonl")
    assert shown["rewards"] == ["bleu", "my_rewards.py:polite", "judge"]
    assert shown["reward_options"] == {"judge": {"model": "m", "kind": "direct"}}
    assert "output_dir" not in shown
    text = json.dumps(shown)
    assert not any(secret in text for secret in ("/home", "10.0.0.1", "SECRET", "scratch"))
    assert hub_name("org/name") == "org/name"
    assert hub_name("/models/x") is hub_name("demo") is None


def test_an_adapter_is_pushed_with_its_card(trained, hub, tmp_path):
    one, run = trained
    address = one.push_to_hub("me/x", private=True, token="hf_token")
    assert address == f"{hub.url}/me/x"
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    for name, content in hub.files.items():
        assert content == (run.path / "best" / name).read_bytes()
    asked = {path.split("?")[0]: headers for _, path, headers in hub.requests}
    for path in ("/api/repos/create", "/api/models/me/x/commit/main"):
        assert {key.lower(): value for key, value in asked[path].items()}["authorization"] == "Bearer hf_token"
    # What arrives is the adapter that was trained.
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    loaded = peft.utils.load_peft_weights(str(tmp_path))
    wanted = peft.utils.load_peft_weights(str(run.path / "best"))
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


def test_a_path_that_a_push_would_show_is_known_before(tmp_path):
    for base, path in (
        ("/home/me/models/tiny", "/home/me/models/tiny"),
        ("../models/tiny", "../models/tiny"),
        ("org/speech-model", None),
        ("base", None),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        assert path_of_base(tmp_path) == path


def test_the_command_pushes(trained, hub, monkeypatch, tmp_path):
    _, run = trained
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    result = CliRunner().invoke(app, ["push", str(run.path), "--repo", "me/y", "--adapter", "last"])
    assert result.exit_code == 0, result.output
    assert f"{hub.url}/me/y has adapter_config.json" in result.output.replace("\n", " ")
    assert hub.files["README.md"] == (run.path / "last/README.md").read_bytes()
    assert "path of the base model" not in result.output
    other = shutil.copytree(run.path, tmp_path / "run")
    settings = json.loads((other / "last/adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/home/me/models/tiny"
    (other / "last/adapter_config.json").write_text(json.dumps(settings))
    result = CliRunner().invoke(app, ["push", str(other), "--repo", "me/z", "--adapter", "last"])
    said = " ".join(result.output.split())
    assert "adapter_config.json has the path of the base model, /home/me/models/tiny, and whoever may" in said


def test_what_cannot_be_pushed_is_said_in_a_sentence(trained, hub, monkeypatch, tmp_path):
    _, run = trained
    with pytest.raises(RunError, match="The adapter is 'newest'; a run has best and last"):
        push_run(run, "me/x", adapter="newest")
    empty = RunDirectory(tmp_path)
    with pytest.raises(RunError, match="has no adapter to push: last/ is missing"):
        push_run(empty, "me/x")
    hub.status = 403
    with pytest.raises(RunError, match=r"could not be pushed to me/x \(HfHubHTTPError: .*hf auth login"):
        push_run(run, "me/x", token="hf_token")
    with pytest.raises(RunError, match=r"could not be pushed to a/b/c \(HFValidationError"):
        push_run(run, "a/b/c", token="hf_token")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(RunError, match=r"could not be pushed to me/x \(Connect"):
            push_run(run, "me/x", token="hf_token")


def test_a_trainer_without_a_run_has_nothing_to_push(tmp_path):
    with pytest.raises(RunError, match="There is no run yet"):
        trainer(recipe(tmp_path)).push_to_hub("me/x")

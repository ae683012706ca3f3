"""`leaf export` and `leaf serve`: what they write, and what they say where it cannot be served."""

import json
import shutil

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AudioFlamingo3ForConditionalGeneration, LlamaForCausalLM
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.commands.serve import _sampler, _split
from leaf.engines.vllm.launch import VARIABLE, find_vllm, largest_rank, serve_command
from leaf.errors import ConfigError, ModelError
from tests.helpers import tiny
from tests.helpers.project import save, write_manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a tiny checkpoint, a run of stage rl, and one of stage sft that trained the projector too."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save(*tiny.tiny_model(), "model")
        write_manifest(folder / "data.jsonl")
        shared = {"model": "model", "task": "data.jsonl", "device": "cpu", "max_steps": 1, "eval_every": 0}
        lora = {"lora_r": 2, "max_new_tokens": 5, "learning_rate": 0.05}
        rl = {**shared, **lora, "prompts_per_rollout": 2, "num_completions": 3, "max_prompt_tokens": 200}
        (folder / "rl.yaml").write_text(yaml.safe_dump(rl))
        (folder / "sft.yaml").write_text(yaml.safe_dump({**shared, **lora, "stage": "sft", "batch_size": 2}))
        run("train", "rl.yaml")
        run("train", "sft.yaml")
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.delenv(VARIABLE, raising=False)
    return trained


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_an_adapter_for_vllms_own_class_has_its_names(here, tmp_path):
    shown = run("export", "runs/rl", "--for", "vllm", "--to", str(tmp_path / "served"))
    assert f"vllm serve model --enable-lora --max-lora-rank 8 --lora-modules adapter={tmp_path}/served" in shown
    assert "does not load a checkpoint with another window, such as leaf's demo model" in shown
    saved = load_file("runs/rl/last/adapter_model.safetensors")
    found = load_file(tmp_path / "served/adapter_model.safetensors")
    assert set(found) == {name.replace("model.language_model.", "language_model.model.") for name in saved}
    assert all(name.startswith("base_model.model.language_model.model.layers.") for name in found)


def test_the_language_model_and_its_adapter_load_as_plain_classes(here, tmp_path):
    shown = run("export", "runs/rl/last", "--for", "vllm", "--language-model", "--to", str(tmp_path / "out"))
    assert "takes prompts that leaf has embedded" in shown
    plain: torch.nn.Module = LlamaForCausalLM.from_pretrained(tmp_path / "out/language_model")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "out/adapter")
    saved = load_file("runs/rl/last/adapter_model.safetensors")
    assert len(peft.get_peft_model_state_dict(loaded)) == len(saved)
    card = json.loads((tmp_path / "out/leaf_export.json").read_text())
    assert (card["model"], card["dtype"]) == ("model", "float32")


def test_an_adapter_outside_a_run_is_exported_too(here, tmp_path):
    """The base is the one that it names, or the one on the command line; a projector beside it comes along."""
    shutil.copytree("runs/sft/last", tmp_path / "copied")
    shown = run("export", str(tmp_path / "copied"), f"model={here}/model", "--for", "peft", "--to", str(tmp_path / "a"))
    assert "projector.safetensors is no part of what peft loads" in shown
    assert torch.equal(
        load_file(tmp_path / "a/projector.safetensors")["linear_1.weight"],
        load_file("runs/sft/last/projector.safetensors")["linear_1.weight"],
    )
    base: torch.nn.Module = AudioFlamingo3ForConditionalGeneration.from_pretrained("model")
    peft.PeftModel.from_pretrained(base, tmp_path / "a")  # whose warning of a missing tensor would fail this test
    other = json.loads((tmp_path / "copied/adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (tmp_path / "copied/adapter_config.json").write_text(json.dumps(other))
    (tmp_path / "copied/checksums.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"does not say on which model it was trained. Set model="):
        run("export", str(tmp_path / "copied"), "--for", "peft", "--to", str(tmp_path / "b"))


def test_merged_is_what_leaf_merge_writes(here, tmp_path):
    run("export", "runs/sft", "--for", "merged", "--to", str(tmp_path / "one"))
    run("merge", "runs/sft/recipe.yaml", "--adapter", "runs/sft/last", "--out", str(tmp_path / "other"))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_exported_says_what_to_do(here, tmp_path):
    to = ("--to", str(tmp_path / "out"))
    with pytest.raises(ModelError, match=r"goes with a trained projector .* `--for merged`, or .* `--language-model`"):
        run("export", "runs/sft", "--for", "vllm", *to)
    with pytest.raises(ConfigError, match=r"--for is 'vlm'; allowed are vllm, peft, merged. Did you mean 'vllm'"):
        run("export", "runs/rl", "--for", "vlm", *to)
    with pytest.raises(ConfigError, match="--language-model and --check-with go with --for vllm"):
        run("export", "runs/rl", "--for", "peft", "--language-model", *to)
    with pytest.raises(ConfigError, match=r"--check-with is http://localhost:1, an address; .*`leaf doctor RECIPE"):
        run("export", "runs/rl", "--for", "vllm", "--check-with", "http://localhost:1", *to)
    with pytest.raises(ConfigError, match=r"data.jsonl has no adapter"):
        run("export", "data.jsonl", "--for", "vllm", *to)
    with pytest.raises(ConfigError, match="names an adapter of a run, and runs/rl/last is no run directory"):
        run("export", "runs/rl/last", "--adapter", "best", "--for", "vllm", *to)
    with pytest.raises(ModelError, match="model exists and is left as it is"):
        run("export", "runs/rl", "--for", "vllm", "--to", "model")
    other = json.loads((here / "model/config.json").read_text())
    other["text_config"]["num_attention_heads"] = 8
    shutil.copytree("model", tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(other))
    for target in ("vllm", "peft"):
        with pytest.raises(ModelError, match=r"takes \d+ values and gives \d+; that of \w+ takes \d+ and gives \d+"):
            run("export", "runs/rl", f"model={tmp_path}/model", "--for", target, *to)
    assert not (tmp_path / "out").exists()


def test_a_server_needs_vllm(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"vLLM is not on this machine: .* `make vllm`"):
        run("serve", "rl.yaml")
    with pytest.raises(ConfigError, match=r"--vllm is .*, and there is no program vllm"):
        run("serve", "rl.yaml", "--vllm", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=f"{VARIABLE} is .*, and there is no program vllm"):
        run("export", "runs/rl", "--for", "vllm", "--language-model", "--to", str(tmp_path / "out"))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/vllm"
    program.touch()
    for named in (tmp_path, program, tmp_path / "bin/python"):
        assert find_vllm(named) == program


def test_a_server_is_started_for_prompts_that_leaf_embeds(tmp_path):
    command = serve_command(tmp_path / "vllm", tmp_path / "model", rank=64, dtype="bfloat16", port=8001, longest=456)
    said = " ".join(command)
    for option in (
        "--host 127.0.0.1 --port 8001 --dtype bfloat16 --enable-prompt-embeds --enable-lora --max-lora-rank 64",
        "--logprobs-mode processed_logprobs",
        "--max-model-len 456",
    ):
        assert option in said
    # Without it a server on a CPU ends at the first prompt that does not fit its batch whole.
    assert torch.cuda.is_available() or "--no-enable-chunked-prefill --block-size 32" in said
    assert [largest_rank(rank) for rank in (1, 2, 8, 9, 320, 512)] == [1, 8, 8, 16, 320, 512]
    with pytest.raises(ConfigError, match=r"has rank 513, and vLLM takes up to 512. Merge it"):
        largest_rank(513)
    assert _split(["dtype=bfloat16", "--seed", "1"]) == (["dtype=bfloat16"], ["--seed", "1"])
    assert _sampler("127.0.0.1", 8000)[1] == "    sampler_options: {url: 'http://127.0.0.1:8000'}"
    assert "inside a trusted network" in _sampler("0.0.0.0", 8000)[-1]

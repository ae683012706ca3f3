"""The published protocol as recipes: every combination resolves to its values, and runs on a model of its family."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.config import LeafConfig, SftConfig, load_recipe
from leaf.data.corpora import CORPORA, prepare
from tests.helpers import tiny
from tests.helpers.families import CASES
from tests.helpers.project import save

PUBLISHED = Path(__file__).parents[2] / "recipes/published"
MODELS = sorted(path.stem for path in (PUBLISHED / "models").glob("*.yaml"))
TASKS = sorted(path.stem for path in (PUBLISHED / "tasks").glob("*.yaml"))
METHODS = ("leaf", "grpo", "sft")


def recipe(method, model, task, *more):
    files = [PUBLISHED / "models" / f"{model}.yaml", PUBLISHED / "tasks" / f"{task}.yaml"]
    return load_recipe(PUBLISHED / f"{method}.yaml", [*map(str, files), *more])


def test_all_models_and_tasks_are_there():
    assert MODELS == ["granite-3.3-2b", "granite-3.3-8b", "granite-4.0-1b", "qwen2-audio-7b", "voxtral-3b"]
    assert TASKS == ["covost2-en-de", "dailytalk", "librisqa", "longaudio"]


@pytest.mark.parametrize("method", METHODS)
def test_every_combination_resolves_to_the_protocol(method):
    for model, task in itertools.product(MODELS, TASKS):
        config = recipe(method, model, task)
        assert config.output_dir == f"runs/{method}-{model}-{task}"
        assert config.task == f"data/{task}"
        assert (config.dtype, config.min_lr_ratio, config.max_grad_norm) == ("bfloat16", 0.1, 1.0)
        assert config.schedule == ("cosine" if method == "sft" else "published")
        assert config.adam_betas == [0.9, 0.95]
        assert isinstance(config, LeafConfig | SftConfig)
        assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (64, 128, 0.05)
        assert set(config.lora_layers or ()) == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
        assert (config.eval_every, config.eval_items, config.best_metric) == (200, 256, "bleu")
        if isinstance(config, LeafConfig):
            assert config.credit == method
            assert (config.num_completions, config.prompts_per_rollout, config.completions_per_update) == (8, 6, 6)
            assert (config.temperature, config.top_p, config.max_new_tokens) == (1.0, 0.9, 200)
            assert (config.learning_rate, config.clip, config.kl_coef) == (5e-6, 0.2, 0.02)
            assert (config.eval_temperature, config.eval_top_p, config.rewards) == (0.9, 0.9, ["bleu"])
            assert (config.reduction, config.mix_prompts) == ("completion_mean", 2)
    options = recipe("leaf", MODELS[0], TASKS[0]).credit_options  # type: ignore[union-attr]
    assert options == {"max_boundaries": 2, "min_prefix": 1, "phantom_spans": True}


def test_variants_for_other_machines_lie_over_them():
    eight = recipe("leaf", "granite-3.3-2b", "librisqa", str(PUBLISHED / "eight-gpus.yaml"))
    assert eight.prompts_per_rollout % 8 == 0  # type: ignore[union-attr]
    assert recipe("sft", "granite-3.3-8b", "librisqa", str(PUBLISHED / "small-gpu.yaml")).gradient_checkpointing


@pytest.mark.parametrize(
    ("method", "gpus", "processes", "eight"),
    [
        ("leaf", 1, None, False),
        ("leaf", 2, 2, False),
        ("grpo", 6, 6, False),
        ("leaf", 7, 7, True),
        ("leaf", 8, 8, True),
        ("sft", 16, None, False),
    ],
)
def test_a_queued_run_keeps_the_protocol_where_six_prompts_suffice(tmp_path, method, gpus, processes, eight):
    said = queued(tmp_path, method, gpus)
    assert said.returncode == 0, said.stderr
    *lines, started = said.stdout.splitlines()
    assert started.startswith("leaf train" if processes is None else "torchrun --standalone")
    assert processes is None or f"--nproc_per_node {processes} " in started
    assert ("eight-gpus.yaml" in started) == eight
    assert any("eight-gpus.yaml puts 8 prompts" in line for line in lines) == eight
    assert started.endswith("seed=1 --resume")


def test_a_queued_run_on_more_gpus_than_prompts_is_refused(tmp_path):
    said = queued(tmp_path, "leaf", 9)
    assert (said.returncode, said.stdout) == (2, "")
    assert "ask for at most 8 GPUs" in said.stderr


def test_a_queued_run_whose_time_is_up_saves_and_queues_itself_again(tmp_path):
    """Slurm signals the script, and a run that saves and says so by its exit code stands in for leaf."""
    for name, body in {
        "leaf": "trap 'echo saved; exit 75' TERM; echo begun; for i in $(seq 600); do sleep 0.1; done",
        "scontrol": 'echo scontrol "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", str(PUBLISHED / "slurm.sh"), "leaf", "granite-3.3-2b", "librisqa"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "begun\n"
        job.terminate()
        rest, _ = job.communicate(timeout=60)
    assert (job.returncode, rest.splitlines()) == (75, ["saved", "scontrol requeue 7"])


def queued(folder, method, gpus):
    """What slurm.sh does on so many GPUs, with programs that print what they are called with."""
    for name in ("leaf", "torchrun"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": str(gpus)}
    command = ["bash", str(PUBLISHED / "slurm.sh"), method, "granite-3.3-2b", "librisqa", "seed=1"]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def librisqa(tmp_path_factory):
    """Return a prepared LibriSQA of tones in LibriSpeech's layout."""
    source = tmp_path_factory.mktemp("corpus")
    for split, folder, speakers in (("train", "train-clean-360", range(24)), ("test", "test-clean", range(90, 92))):
        entries = []
        for speaker in speakers:
            name = f"LibriSpeech/{folder}/{speaker}/1/{speaker}-1-0000.flac"
            (source / name).parent.mkdir(parents=True)
            audio = tiny.rows(3)[speaker % 3]["audio"]
            soundfile.write(source / name, audio["array"], audio["sampling_rate"])
            entries.append({"speech_path": name, "text": "", "question": f"Who is number {speaker}?", "answer": "one"})
        (source / f"LibriSQA-PartI-{split}.json").write_text(json.dumps(entries))
    prepare("librisqa", CORPORA["librisqa"], source, source / "prepared", say=lambda line: None)
    return str(source / "prepared")


@pytest.mark.parametrize(
    ("method", "model", "case"),
    [
        ("leaf", "granite-3.3-2b", "granite_speech"),
        ("grpo", "qwen2-audio-7b", "qwen2_audio"),
        ("leaf", "voxtral-3b", "voxtral"),
        ("sft", "granite-3.3-2b", "granite_speech"),
    ],
)
def test_a_step_with_the_real_hyperparameters_on_a_tiny_model(method, model, case, librisqa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, processor = CASES[case]()
    save(network, processor, "model")
    files = [str(PUBLISHED / "models" / f"{model}.yaml"), str(PUBLISHED / "tasks/librisqa.yaml")]
    steps = ["max_steps=1"] if method == "sft" else ["epochs=null", "max_steps=1"]
    overrides = ["model=model", f"task={librisqa}", "device=cpu", "eval_items=2", "output_dir=run", *steps]
    arguments = [str(PUBLISHED / f"{method}.yaml"), *files, *overrides]
    checked = CliRunner().invoke(app, ["doctor", *arguments])
    assert checked.exit_code == 0, checked.output
    assert "fails" not in checked.output
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 1
    assert record["loss"] == record["loss"]


def test_the_doctor_says_what_is_missing_and_what_to_change(librisqa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    said = CliRunner().invoke(app, ["doctor", str(PUBLISHED / "leaf.yaml"), "model=model", "task=nothing"])
    assert said.exit_code == 1
    assert "fails   model: model cannot be looked at" in said.output
    assert "fails   data, train: The task 'nothing' is unknown" in said.output
    network, processor = CASES["qwen2_audio"]()
    save(network, processor, "model")
    huge = ["max_prompt_tokens=100000000", "max_new_tokens=100000", "device=cpu", "model=model", f"task={librisqa}"]
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)  # those of a CPU without bfloat16
    said = CliRunner().invoke(app, ["doctor", str(PUBLISHED / "leaf.yaml"), *huge])
    assert said.exit_code == 1
    assert "Use gradient_checkpointing: true, a smaller max_new_tokens" in said.output
    assert "which emulates bfloat16, several times slower\n        Use dtype: auto." in said.output

"""The whole published protocol on tiny models of the right classes: from the publishers' files to the last table.

Every command of docs/reproducing.md is run as it stands there, with fewer rows, shorter completions and the tiny model
in place of the checkpoint. Slow: every model and every task.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.data import load
from tests.helpers.families import CASES
from tests.helpers.project import save
from tests.helpers.publishers import lay_out

PUBLISHED = Path(__file__).parents[2] / "recipes/published"
SERVER = Path(__file__).parents[1] / "helpers/judge_server.py"
MODELS = {
    "granite-3.3-2b": "granite_speech",
    "granite-3.3-8b": "granite_speech",
    "granite-4.0-1b": "granite_speech",  # its decoder has Granite's plain class, with gate_proj, up_proj and down_proj
    "qwen2-audio-7b": "qwen2_audio",
    "voxtral-3b": "voxtral",
}
TASKS = ("librisqa", "covost2-en-de", "dailytalk", "longaudio")
QUICK = [("granite-3.3-2b", "librisqa"), ("qwen2-audio-7b", "covost2-en-de")]
METRICS = "bleu,rouge1,rouge2,rougeL,exact_match,words,tokens,truncated"
SHORT = ["max_new_tokens=6", "eval_items=2", "save_every=1", "keep_checkpoints=9"]


@pytest.fixture(scope="module")
def url():
    """The address of a judge that says what its template tells it."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.terminate()


def leaf(*arguments):
    said = CliRunner().invoke(app, [str(one) for one in arguments])
    assert said.exit_code == 0, (said.output, said.exception)
    return said.output


def judged(url, kind, reply, *files, shown="{question} {reference}"):
    """Have a prediction file judged in a reply's words, by a template that shows these fields and the answer."""
    names = "{answer_a} {answer_b}" if kind == "pairwise" else "{answer}"
    Path(f"{kind}.txt").write_text(f"{shown} {names} says={reply};")
    first, *other = files
    against = ["--against", *other] if other else []
    return leaf("judge", first, "--kind", kind, *against, "--url", url, "--model", "m", "--template", f"{kind}.txt")


def protocol(model, task, url, *, methods=("leaf", "grpo"), steps=1):
    """Run the protocol of a model and a task, two epochs of so many steps, and return the last table."""
    network, processor = CASES[MODELS[model]]()
    save(network, processor, "model")
    leaf("data", "prepare", *lay_out(task, Path("corpora") / task), "--to", f"data/{task}")
    files = [PUBLISHED / f"models/{model}.yaml", PUBLISHED / f"tasks/{task}.yaml"]
    here = ["model=model", "device=cpu", f"train_items={6 * steps}", f"eval_every={steps}", *SHORT]
    for method in methods:
        recipe = [PUBLISHED / f"{method}.yaml", *files, *here, f"output_dir=runs/{method}", "epochs=2"]
        assert "fails" not in leaf("doctor", *recipe)
        leaf("train", *recipe)
        check_run(Path("runs") / method, steps)
    recipe = [PUBLISHED / "leaf.yaml", *files, *here]
    best = [option for method in methods for option in ("--adapter", f"{method}=runs/{method}/best")]
    scored = leaf(
        "evaluate", *recipe, *best, "--with-base", "--passes", 5, "--lowercase", "--metrics", METRICS, "--out", "s"
    )
    assert "T 0.9, top-p 0.9, top-k 50, seeds 42, 43, 44, 45, 46" in " ".join(scored.split())
    check_every_checkpoint(recipe, 2 * steps)
    ours, theirs = f"s/{methods[0]}.jsonl", f"s/{methods[-1]}.jsonl"
    assert "mean 70.00" in judged(url, "direct", "Score: 70", ours)
    assert "mean 4.00" in judged(url, "rubric", "Feedback: good [RESULT] 4", theirs)
    if ours != theirs:
        assert "disagree with themselves" in judged(url, "pairwise", "Verdict: A", ours, theirs)
    check_forks(recipe, best)
    return leaf("compare", "s", "--lowercase")


def check_run(run, steps):
    """Check that a second epoch is there and began optimiser and schedule anew."""
    taken = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in taken] == [*range(1, 2 * steps + 1)]
    assert [one["learning_rate"] for one in taken[:steps]] == [one["learning_rate"] for one in taken[steps:]]
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [one["step"] for one in validations] == [0, steps, 2 * steps]
    assert (run / "best/adapter_config.json").is_file()


def check_every_checkpoint(recipe, steps):
    """All kept checkpoints in one command, on rows drawn with a seed; the last one is the adapter in last/."""
    how = ["--split", "train", "--items", 3, "--items-seed", 1, "--greedy", "--out", "all"]
    table = leaf("evaluate", *recipe, "--run", "runs/leaf", "--adapter", "last=runs/leaf/last", *how)
    names = [f"leaf-step-{step:06d}" for step in range(1, steps + 1)]
    assert all(name in table for name in names)
    said = {name: Path(f"all/{name}.jsonl").read_text() for name in [*names, "last"]}
    assert said[names[-1]] == said["last"]


def check_forks(recipe, adapters):
    leaf("forks", *recipe, *adapters, "--split", "train", "--items", 2, "--out", "forks")
    record = json.loads(Path("forks/leaf.json").read_text())
    assert (record["items"], record["num_completions"], record["max_boundaries"]) == (2, 8, 2)
    assert record["boundaries"] == sum(one["boundaries"] for one in record["positions"])
    assert 0 <= record["usable_rate"] <= record["fire_rate"] <= 1


@pytest.mark.parametrize(("model", "task"), QUICK[:1])
def test_the_protocol_from_the_publishers_files_to_the_table(model, task, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = protocol(model, task, url)
    for expected in ("base", "leaf", "grpo", "judge direct", "judge rubric", "judge pairwise"):
        assert expected.replace("base", "model") in table
    prompts = {row["prompt"] for row in load(f"data/{task}", "train")}
    assert all("{audio}" in prompt for prompt in prompts)


@pytest.mark.parametrize(("model", "task"), QUICK[1:])
def test_another_model_and_task_take_leaf_alone_through_it(model, task, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "judge rubric" in protocol(model, task, url, methods=("leaf",))
    (prompt,) = {row["prompt"] for row in load(f"data/{task}", "test")}
    assert prompt == "{audio} Listen to the speech and translate it into German."


def test_voicebench_is_decoded_greedily_and_judged(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, processor = CASES["granite_speech"]()
    save(network, processor, "model")
    leaf("data", "prepare", *lay_out("voicebench", Path("corpora")), "--to", "data/voicebench")
    recipe = [PUBLISHED / "leaf.yaml", PUBLISHED / "models/granite-3.3-2b.yaml", "model=model", "device=cpu"]
    more = ["task=data/voicebench", "max_new_tokens=256", "--greedy", "--metrics", "none", "--out", "v"]
    leaf("evaluate", *recipe, *more)
    # The judge gives 3 a chance of 0.6 and 1 one of 0.3: (0.6 · 3 + 0.3 · 1) / 0.9.
    assert "mean 2.33" in judged(url, "rubric", "3", "v/model.jsonl", shown="{passage}")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_the_whole_protocol_for_every_model_and_task(model, task, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = protocol(model, task, url, steps=2)
    for expected in ("leaf", "grpo", "judge direct", "judge rubric", "judge pairwise", "bleu", "tokens"):
        assert expected in table

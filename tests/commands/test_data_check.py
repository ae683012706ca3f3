"""`leaf data check`: what a data set holds, and what a run would refuse of it."""

import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.errors import ConfigError, DataError
from leaf.model.prompt_lengths import PromptLengths
from leaf.model.prompts import encode
from tests.helpers import tiny
from tests.helpers.project import save
from tests.helpers.sound import write


def checked(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def cells(output):
    """Read the table as title → cells."""
    lines = [re.split(r"[│┃]", line) for line in output.splitlines() if "│" in line]
    return {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in lines}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        write(tmp_path / f"{i}.wav", 0.5 + i / 10, 16000 if i % 3 else 8000)
    return tmp_path


def rows(count=12) -> list[dict[str, Any]]:
    sides = ("train", "train", "validation", "test")
    return [
        {
            "prompt": "press one",
            "audio": f"{i}.wav",
            "reference": "one" if i % 4 == 0 else f"number {i} of a dozen.",
            "split": sides[i % 4],
            "language": "en" if i % 2 else "it",
        }
        for i in range(count)
    ]


def manifest(folder, its):
    path = folder / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, its)))
    return path


def test_a_split_that_a_run_needs_and_the_set_has_not_is_said(folder):
    path = manifest(folder, [{**row, "split": "train"} for row in rows() if row["split"] != "test"])
    line = "there is no row in the split validation, which a run validates on: set eval_split, or eval_every=0"
    alone = checked(path)
    assert line in alone.stdout
    assert alone.exit_code == 0  # no recipe says what a run will need
    recipe = folder / "my.yaml"
    recipe.write_text(f"model: base\ntask: {path}\n")
    assert checked(recipe).exit_code == 1
    assert line not in checked(recipe, "eval_every=0").stdout
    assert "no row in the split" not in checked(path, "--splits", "train").stdout


def test_a_sound_set_is_counted_and_passes(folder):
    result = checked(manifest(folder, rows()))
    assert result.exit_code == 0, result.output
    found = cells(result.stdout)
    assert found["rows"] == found["recordings"] == ["6", "3", "3"]
    assert found["seconds"] == ["0.5 / 0.9 / 1.4", "0.7 / 1.1 / 1.5", "0.8 / 1.2 / 1.6"]
    assert (found["8000 Hz"], found["16000 Hz"]) == (["2", "1", "1"], ["4", "2", "2"])
    assert found["channels: 1"] == ["6", "3", "3"]
    assert found["reference tokens"] == ["1 / 3.5 / 6", "6 / 6 / 6", "6 / 6 / 6"]
    assert found["references under 4"] == ["3", "0", "0"]
    assert (found["language: en"], found["language: it"]) == (["3", "0", "3"], ["3", "3", "0"])
    assert found["unusable rows"] == ["0", "0", "0"]
    assert "0 of 12 rows cannot be used" in result.stdout
    assert "0 leaks" in result.stdout
    assert "no recipe was given, so no model's longest audio and no max_prompt_tokens were checked" in result.stdout
    assert "train: 3 of 6 references have fewer than 4 tokens" in result.stdout
    assert max(map(len, re.findall(r"^[┃│┏┡└].*$", result.stdout, re.MULTILINE))) <= 80


def test_unusable_rows_are_named_with_their_reasons(folder):
    its = rows()
    cut = (folder / "0.wav").read_bytes()
    (folder / "0.wav").write_bytes(cut[: len(cut) // 2])
    (folder / "1.wav").write_text("no audio")
    its[4]["seconds"] = 20
    its[5] |= {"offset": 0.5, "duration": 3}
    soundfile.write(folder / "6.wav", np.zeros(16000), 16000)
    damaged = bytearray(write(folder / "7.flac", 1.0).read_bytes())
    damaged[300:1500] = bytes(1200)
    (folder / "7.flac").write_bytes(damaged)
    its[7]["audio"] = "7.flac"
    result = checked(manifest(folder, its))
    assert result.exit_code == 1
    assert "4 of 12 rows cannot be used" in result.stdout
    for reason in (
        r"train, Row '1': The audio file .*0\.wav states 0\.50 s and holds 0\.25 s",
        r"train, Row '2': The audio file .*1\.wav cannot be read",
        r"train, Row '5': The audio lasts 0\.90 s and the row states 20",
        r"train, Row '6': The stretch from 0\.5 to 3\.5 s is not in",
    ):
        assert re.search(reason, result.stdout), reason
    decoded = checked("my.jsonl", "--decode")
    assert decoded.exit_code == 1
    assert "6 of 12 rows cannot be used" in decoded.stdout
    assert re.search(r"validation, Row '7': The audio of the file .*6\.wav is silent", decoded.stdout)
    assert re.search(r"test, Row '8': .*7\.flac", decoded.stdout)
    assert cells(decoded.stdout)["unusable rows"] == ["4", "1", "1"]


def test_files_that_are_not_there_are_counted(folder):
    its = rows()
    for i in (2, 3, 9):
        (folder / f"{i}.wav").unlink()
    result = checked(manifest(folder, its))
    assert result.exit_code == 1
    assert "Row 3 of my.jsonl names the audio file" in result.stdout
    assert "does not exist. So it is with 2 more: 4, 10." in result.stdout


def test_copies_are_named_inside_a_split_and_across(folder):
    its = rows()
    shutil.copy(folder / "0.wav", folder / "again.wav")
    its[1]["audio"] = "again.wav"
    result = checked(manifest(folder, its))
    assert result.exit_code == 0
    assert "train: recordings that are copies: 1 (again.wav is 0.wav)" in result.stdout
    its[1]["reference"] = its[0]["reference"]
    assert "train: rows that repeat others: 1 (2 is 1)" in checked(manifest(folder, its)).stdout
    its[3]["audio"], its[1]["audio"] = "again.wav", "1.wav"
    result = checked(manifest(folder, its))
    assert result.exit_code == 1
    assert "1 leak of other splits into train" in result.stdout
    assert "test: the recording again.wav is heard in train too, as 0.wav" in result.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save(*tiny.tiny_model(), folder / "model")
    return folder / "model"


def recipe(folder, checkpoint, **more):
    settings = {"stage": "rl", "model": str(checkpoint), "task": "my.jsonl", "tolerate": "stop", **more}
    (folder / "rl.yaml").write_text(json.dumps(settings))
    return "rl.yaml"


def test_a_recipe_brings_the_limits_of_its_model(folder, checkpoint):
    its = rows()
    write(folder / "8.wav", 2.5)  # the tiny model takes 2 s
    its[1]["prompt"] = "press one " * 30
    its[2]["prompt"] = "<sound> and <sound>"
    manifest(folder, its)
    result = checked(recipe(folder, checkpoint), "max_prompt_tokens=80")
    assert result.exit_code == 1, result.output
    assert "the model takes at most 2 s of audio" in result.stdout
    assert "3 of 12 rows cannot be used" in result.stdout
    assert "train, Row '9': The audio lasts 2.5 s; this model takes at most 2 s" in result.stdout
    assert re.search(r"train, row '2': The prompt of '2' has \d+ tokens, audio included; at most 80", result.stdout)
    assert "validation, row '3': The prompt of '3' has 2 audio placeholders" in result.stdout
    assert "stage rl stops at the first of them that it reaches; tolerate: skip passes over unusable" in result.stdout
    skipping = checked("rl.yaml", "max_prompt_tokens=80", "tolerate=skip").stdout
    assert "the next row takes the place of one whose audio is unusable (1)" in skipping
    assert "2 of them have a prompt that cannot be used: the run stops there" in skipping
    assert cells(skipping)["prompt tokens"][0].endswith(" / 94")


def test_a_model_that_cannot_be_looked_at_leaves_its_limits_unchecked(folder, tmp_path):
    manifest(folder, rows())
    result = checked(recipe(folder, tmp_path / "none"))
    assert result.exit_code == 0, result.output
    assert "the longest audio and the prompts were not checked, for the model is unknown:" in result.stdout


def test_prompts_are_counted_as_the_processor_makes_them(policy):
    lengths = PromptLengths(policy.family, policy.processor)
    for row in [*tiny.rows(4), {**tiny.rows(1)[0], "prompt": "press " * 40}]:
        seconds = len(row["audio"]["array"]) / 16000
        exactly = int(encode(policy.family, policy.processor, [row], None)["attention_mask"].sum())
        assert lengths.count(row, seconds, limit=1) == exactly
        assert abs(lengths.count(row, seconds) - exactly) <= 3


def test_what_is_no_recipe_takes_no_keys_and_splits_are_named(folder):
    manifest(folder, rows())
    assert "max_steps=1 goes with a recipe" in str(checked("my.jsonl", "max_steps=1").exception)
    assert isinstance(checked("my.jsonl", "max_steps=1").exception, ConfigError)
    wrong = checked("my.jsonl", "--splits", "train,tset").exception
    assert isinstance(wrong, DataError)
    assert "has no split 'tset'; it has train, validation, test. Did you mean 'test'?" in str(wrong)
    result = checked("my.jsonl", "--splits", "validation,test")
    assert result.exit_code == 0
    assert "no leaks were looked for: there is no split train" in result.stdout


def test_the_code_of_a_recipe_runs_where_it_is_trusted(folder, checkpoint):
    manifest(folder, rows())
    (folder / "mine.py").write_text("open('ran', 'w').close()")
    result = checked(recipe(folder, checkpoint, plugins=["mine.py"]))
    assert result.exit_code == 0, result.output
    assert "mine.py is code that the recipe names" in result.stdout
    assert not (folder / "ran").exists()
    refused = checked("rl.yaml", "task=of_the_plugin").exception
    assert "give --trust to run it" in str(refused)
    assert checked("rl.yaml", "--trust").exit_code == 0
    assert (folder / "ran").exists()

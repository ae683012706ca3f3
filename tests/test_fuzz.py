"""Mutated recipes, manifests, recordings, prompts and rewards: only this library's own errors come out, in one line.

Every input is a function of its number, so a failure names what to run again.
"""

import csv
import io
import json
import os
import random
import warnings

import numpy as np
import pytest
import soundfile
import yaml

from leaf.config import LeafConfig, from_dict, load_recipe, to_dict
from leaf.credit import credit_rule
from leaf.data import load
from leaf.data.audio import AudioWarning, audio_seconds, load_audio
from leaf.data.recordings import audio_of
from leaf.errors import LeafError
from leaf.model.device import pick_device
from leaf.model.families import family
from leaf.model.prompts import conversation
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards
from tests.helpers.mutations import RECIPE_TEXTS, VALUES, in_recipes, mutated_bytes, mutated_value

LONGEST = 2000  # characters of a message

RECIPES = [
    {
        "stage": "rl",
        "credit": "leaf",
        "credit_options": {"max_boundaries": 2},
        "rewards": ["bleu", "chrf"],
        "seed": 3,
        "reward_weights": [1.0, 0.5],
        "learning_rate": 1.0e-4,
        "task": "data.jsonl",
        "columns": {"reference": "answer"},
        "max_steps": 10,
        "top_p": 0.9,
        "token_budget": None,
        "eval_greedy": True,
        "output_dir": "runs/a",
    },
    {"stage": "sft", "batch_size": 2, "train_projector": False, "extra_tasks": ["asterisk_asr"], "lora_layers": ["q"]},
    {"stage": "align", "max_steps": 5, "plugins": [], "device": "cpu", "dtype": "bfloat16", "extends": "base.yaml"},
]
ROWS = [
    {"prompt": "Say", "audio": "1.wav", "reference": "one", "split": "train", "level": 3},
    {"prompt": "Say\nit", "audio": ["1.wav", "2.wav"], "reference": "zwei, ü", "split": "train", "level": 4},
    {"prompt": "What?", "audio": "2.wav", "reference": "three", "split": "test", "level": 5},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    for i in range(3):
        soundfile.write(path / f"{i}.wav", np.full(1600, 0.1), 16000)
    for suffix in ("wav", "yaml", "jsonl", "csv"):
        (path / f"loop.{suffix}").symlink_to(path / f"loop.{suffix}")
        (path / f"folder.{suffix}").mkdir()
    (path / "folder").mkdir()
    (path / "base.yaml").write_text("seed: 3\n")
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (path / "deep.yaml").write_text("extends: deeper.yaml\n")
    (path / "deeper.yaml").write_text("extends: [deep.yaml, deep.yaml]\n")
    here = os.getcwd()
    os.chdir(path)
    yield path
    os.chdir(here)


def survives(action, numbers):
    """Run an action per number; anything but a LeafError of one bounded line is a failure. Returns how many passed."""
    failures, passed = [], 0
    for number in numbers:
        try:
            action(random.Random(number))
            passed += 1
        except LeafError as error:
            if "\n" in str(error).strip() or not 0 < len(str(error)) <= LONGEST:
                failures.append(f"{number}: a message of {len(str(error))} characters: {str(error)[:300]!r}")
        except Exception as error:
            failures.append(f"{number}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, f"{len(failures)} of {len(numbers)} inputs:\n" + "\n".join(failures[:8])
    return passed


def one_recipe(draw):
    values = draw.choice(RECIPES)
    for _ in range(draw.choice([0, 1, 1, 2])):
        mutated = mutated_value(draw, values)
        values = mutated if in_recipes(mutated) else values
    style = {"allow_unicode": draw.random() < 0.5, "default_flow_style": draw.choice([None, True, False])}
    content = yaml.dump(values, Dumper=yaml.CSafeDumper, **style).encode()
    with open("recipe.yaml", "wb") as file:
        file.write(mutated_bytes(draw, content, RECIPE_TEXTS) if draw.random() < 0.6 else content)
    name = draw.choice(["recipe.yaml"] * 20 + ["loop.yaml", "folder.yaml", "none.yaml", "deep.yaml"])
    overrides = []
    if draw.random() < 0.3:
        key = draw.choice(["seed", "rewards", "credit_options", "extends", "stage", "max_steps", "", "a.b", "plugins"])
        value = draw.choice([*RECIPE_TEXTS, *(json.dumps(value) for value in VALUES if in_recipes(value))])
        overrides = [draw.choice([f"{key}={value}", key, value, "folder.yaml", "recipe.yaml"])]
    config = load_recipe(name, overrides)
    # What is accepted can be written and read back, in YAML and in JSON, and what hangs on it can be built or refused.
    plain = to_dict(config)
    assert (
        from_dict(yaml.load(yaml.dump(plain, Dumper=yaml.CSafeDumper, allow_unicode=True), yaml.CSafeLoader)) == config
    )
    assert json.loads(json.dumps(plain, allow_nan=False).encode()) is not None
    pick_device(config.device)
    if isinstance(config, LeafConfig):
        credit_rule(config.credit, **config.credit_options)
        Rewards(config.rewards, weights=config.reward_weights)


def one_manifest(draw):
    rows = ROWS
    for _ in range(draw.choice([0, 0, 1, 1, 2])):
        rows = mutated_value(draw, rows)
    suffix = draw.choice(["jsonl", "jsonl", "csv", "tsv"])
    records = rows if isinstance(rows, list) else [rows]
    if suffix == "jsonl":
        lines = ["1" * 5000 if record == 10**400 else _json(record) for record in records]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if suffix == "csv" else "\t")
        table = [record for record in records if isinstance(record, dict)]
        writer.writerow(map(_cell, table[0] if table else ()))
        writer.writerows([_cell(cell) for cell in record.values()] for record in table)
        content = out.getvalue().encode("utf-8", "surrogatepass")
    if draw.random() < 0.5:
        content = mutated_bytes(draw, content)
    with open(f"rows.{suffix}", "wb") as file:
        file.write(content)
    special = ["loop.jsonl", "folder.csv", "none.tsv", "a\0.jsonl", "folder", "rows.txt", "asterisk_"]
    columns = draw.choice([None] * 20 + [{"reference": "level"}, {"audio": "none"}, {"x": "y"}, {"prompt": ""}])
    name = draw.choice([f"rows.{suffix}"] * 60 + special)
    load(name, draw.choice(["train"] * 8 + ["test", "dev"]), limit=draw.choice([None, None, 1, 0]), columns=columns)


def _json(value):
    try:
        return json.dumps(value)
    except ValueError:  # Python writes out no whole numbers of more than 4,300 digits
        return "9" * 5000


def _cell(value):
    if isinstance(value, list) and value:
        value = value[0]  # a table has one recording per row
    return value if isinstance(value, str) else _json(value)


def recordings():
    """Return one short recording in every encoding, as bytes."""
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4000) / 16000)
    kinds = [
        ("wav", "PCM_16"),
        ("wav", "FLOAT"),
        ("flac", None),
        ("ogg", "VORBIS"),
        ("ogg", "OPUS"),
        ("mp3", None),
        ("aiff", None),
        ("au", None),
        ("caf", None),
        ("w64", None),
    ]
    made = []
    for suffix, subtype in kinds:
        soundfile.write(f"kind.{suffix}", wave, 16000, subtype=subtype)
        with open(f"kind.{suffix}", "rb") as file:
            made.append((suffix, file.read()))
    return made


def one_recording(draw, kinds):
    suffix, content = draw.choice(kinds)
    content = bytearray(content)
    match draw.randrange(4):
        case 0:
            content = content[: draw.randrange(len(content))]
        case 1:  # the header
            for _ in range(draw.randrange(1, 30)):
                content[draw.randrange(min(len(content), 120))] = draw.randrange(256)
        case 2:
            for _ in range(draw.randrange(1, 200)):
                content[draw.randrange(len(content))] = draw.randrange(256)
        case 3:
            at = draw.randrange(min(len(content), 100))
            content[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    name = f"mutant.{draw.choice([suffix] * 9 + ['raw', 'bin'])}"
    with open(name, "wb") as file:
        file.write(content)
    try:
        audio_seconds(name)
    finally:
        wave = load_audio(name)
        assert wave.dtype == np.float32
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() <= 1.0


def one_prompt(draw):
    known = family(draw.choice(["audioflamingo3", "voxtral", "qwen2_audio"]))
    token = known.audio_token
    row = {
        "id": "1",
        "prompt": [
            {"role": "user", "content": [{"type": "audio", "audio": "1.wav"}, {"type": "text", "text": token}]},
            {"role": "assistant", "content": f"a {token}"},
        ],
        "audio": {"array": [0.1] * 1600, "sampling_rate": 16000},
    }
    if draw.random() < 0.3:
        row["prompt"] = f"{token} say {token}"
    if draw.random() < 0.5:
        row["audio"] = draw.choice([None, "1.wav", ["1.wav", "2.wav"], "none.wav", b"1.wav"])
    for _ in range(draw.choice([1, 1, 2, 3])):
        row = mutated_value(draw, row)
    if isinstance(row, dict):
        audio = audio_of(row)
        conversation(known, row["prompt"])
        audio_seconds(audio)
        load_audio(audio)


def one_reward(draw):
    value = mutated_value(draw, draw.choice([[0.5, 1.0, None], [1, 0, True], 0.5, "abc", {"a": 1}]))
    value = draw.choice([value, np.array([0.5, np.nan, np.inf]), iter([1.0] * 3), np.ones((3, 2)), {1, 2, 3}, range(3)])
    skip = Rewards([lambda **_: value], on_error="skip")(completions=["a", "b", "c"])
    assert skip.totals.shape == (3,)
    assert not np.isinf(skip.totals).any()
    assert np.isnan(skip.totals[skip.failed]).all()
    assert bool(skip.messages) == bool(skip.failed.any())
    assert all(len(message) <= LONGEST for message in skip.messages)
    Rewards([draw.choice(list(REWARDS))])(completions=["a"] * 3, reference=value)
    Rewards([lambda **_: value])(completions=["a", "b", "c"])


@pytest.mark.parametrize(
    "numbers", [range(1000), pytest.param(range(6000), marks=pytest.mark.slow)], ids=["1000", "6000"]
)
def test_recipes(folder, numbers):
    assert 0.1 * len(numbers) < survives(one_recipe, numbers) < 0.9 * len(numbers)


@pytest.mark.parametrize(
    "numbers", [range(1000), pytest.param(range(4000), marks=pytest.mark.slow)], ids=["1000", "4000"]
)
def test_manifests(folder, numbers):
    assert 0.05 * len(numbers) < survives(one_manifest, numbers) < 0.9 * len(numbers)


@pytest.mark.parametrize(
    "numbers", [range(500), pytest.param(range(10_000), marks=pytest.mark.slow)], ids=["500", "10000"]
)
def test_recordings(folder, numbers):
    kinds = recordings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)  # noise in the place of samples may well be clipped
        assert 0.1 * len(numbers) < survives(lambda draw: one_recording(draw, kinds), numbers) < 0.9 * len(numbers)


def test_prompts(folder):
    assert 50 < survives(one_prompt, range(1000)) < 900


def test_rewards(folder):
    survives(one_reward, range(1000))


@pytest.mark.parametrize("name", ["deep", "folder", "loop", "none"])
def test_recipes_that_cannot_be_read_are_refused(folder, name):
    with pytest.raises(LeafError):
        load_recipe(f"{name}.yaml")

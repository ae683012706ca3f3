"""Every stage takes a data set of `datasets` with an audio column, and refuses rows before a model is loaded."""

import dataclasses
import io
from pathlib import Path

import peft
import pytest
import soundfile
from datasets import Audio, Dataset

from leaf.config import AlignConfig, LeafConfig, SftConfig
from leaf.errors import DataError
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.predict import Decoding
from leaf.files import read_rows
from leaf.model.policy import Policy
from leaf.runs.directory import RunDirectory
from leaf.train.align import align
from leaf.train.leaf_trainer import LeafTrainer
from leaf.train.recipe import note_on_validation
from leaf.train.sft import sft
from tests.helpers import tiny


def data_set(count=2):
    """Rows of the tiny model with their audio encoded in an audio column, which `datasets` would decode."""
    made = tiny.rows(count)
    for row in made:
        file = io.BytesIO()
        soundfile.write(file, row["audio"]["array"], 16000, format="WAV", subtype="FLOAT")
        row["audio"] = file.getvalue()
    return Dataset.from_list(made).cast_column("audio", Audio())


def recipe(kind, path, **changes):
    return kind(output_dir=str(path), max_steps=1, learning_rate=0.01, device="cpu", **changes)


def test_stage_rl_trains_and_validates_on_a_data_set_with_audio(tmp_path):
    model, processor = tiny.tiny_model()
    fields = {"prompts_per_rollout": 2, "num_completions": 2, "max_new_tokens": 4, "lora_r": 2}
    config = recipe(LeafConfig, tmp_path / "run", eval_every=1, best_metric="chrf", **fields)
    said = []
    run = LeafTrainer(model, ["chrf"], config, data_set(), data_set(), processor, say=said.append).train()
    config = recipe(LeafConfig, tmp_path / "same", eval_every=1, best_metric="chrf", **fields)
    model, _ = tiny.tiny_model()
    same = LeafTrainer(model, ["chrf"], config, tiny.rows(2), tiny.rows(2), processor, say=said.append).train()
    for name in ("metrics.jsonl", "validation.jsonl"):
        ours, theirs = (read_rows(one.path / name)[-1] for one in (run, same))
        drop = [key for key in ours if key.startswith(("seconds", "memory"))]
        assert {**ours, **dict.fromkeys(drop)} == {**theirs, **dict.fromkeys(drop)}


def test_stages_sft_and_align_and_evaluate_take_a_data_set_with_audio(tmp_path):
    model, processor = tiny.tiny_model()
    policy = Policy.wrap(model, processor, lora=peft.LoraConfig(r=2))
    config = recipe(SftConfig, tmp_path / "sft", eval_every=0, batch_size=2, train_projector=False)
    sft(config, policy, data_set(), [], RunDirectory.create(config), lambda line: None)
    result = evaluate(policy, data_set(), Decoding(greedy=True, max_new_tokens=4))
    assert len(result.passes[0]) == 2
    config = recipe(AlignConfig, tmp_path / "align", eval_every=1, batch_size=2)
    align(
        config, Policy.wrap(*tiny.tiny_model()), data_set(), data_set(), RunDirectory.create(config), lambda line: None
    )
    assert Path(tmp_path / "align/projector.safetensors").is_file()


@pytest.mark.parametrize(
    ("train", "validation", "changes", "message"),
    [
        (data_set().to_iterable_dataset(), None, {}, "training rows are an IterableDataset"),
        (data_set(), {"test": data_set()}, {}, "validation rows are a dict with the splits 'test'"),
        (data_set().remove_columns("reference"), None, {}, "The reward function chrf takes 'reference' by name"),
        (data_set(), data_set().remove_columns("reference"), {}, "The validation metric bleu compares answers with"),
        ([{**row, "reference": None} for row in tiny.rows(2)], None, {}, "reward chrf compares .* '0' has none"),
        (data_set(), [{**row, "reference": " "} for row in tiny.rows(2)], {}, "and the row '0' has none"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_before_the_model_is_loaded(tmp_path, train, validation, changes, message):
    with pytest.raises(DataError, match=message):
        LeafTrainer("no/such/model", ["chrf"], recipe(LeafConfig, tmp_path / "run", **changes), train, validation)


def test_a_run_that_validates_on_its_training_rows_says_so_at_the_start(tmp_path):
    rows = tiny.rows(2)
    model, processor = tiny.tiny_model()
    small = {"prompts_per_rollout": 2, "num_completions": 2, "max_new_tokens": 4, "lora_r": 2}
    said = []
    config = recipe(LeafConfig, tmp_path / "rl", eval_every=1, **small)
    run = LeafTrainer(model, ["chrf"], config, rows, rows, processor, say=said.append).train()
    note = "the same rows are given for training and validation: validation scores say how well the training rows are"
    assert any(line.startswith(f"start: {note}") for line in said[: len(said) // 2])
    assert run.script_values()["eval_split"] == "the training rows"
    said.clear()
    config = recipe(AlignConfig, tmp_path / "align", eval_every=1, train_split="validation")
    align(config, Policy.wrap(*tiny.tiny_model()), rows, rows[:1], RunDirectory.create(config), said.append)
    assert said[0].startswith("align: train_split and eval_split are both validation: validation scores say")
    other = dataclasses.replace(config, eval_every=0)
    assert note_on_validation(other) is None
    assert note_on_validation(dataclasses.replace(config, train_split="train"), rows, rows[:1]) is None


def short(completions, **columns):
    return [-float(len(text)) for text in completions]


@pytest.mark.parametrize("some", [0, 1])
def test_a_run_without_references_is_validated_by_its_reward(tmp_path, some):
    """On rows of which none, or only some, have a reference."""
    rows = [row if i < some else {**row, "reference": None} for i, row in enumerate(tiny.rows(2))]
    model, processor = tiny.tiny_model()
    small = {"prompts_per_rollout": 2, "num_completions": 2, "max_new_tokens": 4, "lora_r": 2}
    said = []
    config = recipe(LeafConfig, tmp_path / "rl", eval_every=1, best_metric="reward", **small)
    run = LeafTrainer(model, [short], config, rows, [dict(row) for row in rows], processor, say=said.append).train()
    scores = read_rows(run.path / "validation.jsonl")[-1]
    assert scores["reward"] == scores["rewards/short/mean"] <= 0
    assert "bleu" not in scores
    assert (run.path / "best").is_dir()
    left_out = "1 of 2 validation rows lack a reference, so no metric of texts is computed"
    assert any(left_out in line for line in said) == (some == 1)

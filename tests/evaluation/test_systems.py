"""Systems of an evaluation: their names, interrupted and repeated evaluations, and recordings that are not usable."""

import copy
import json
import shutil
import weakref
from typing import Any

import numpy as np
import pytest
import soundfile

from leaf.config import LeafConfig
from leaf.errors import AudioError, ConfigError, DataError, RunError
from leaf.evaluation import systems as systems_module
from leaf.evaluation.compare import compare_files
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.predict import Decoding, predict
from leaf.evaluation.predictions import prediction_files, read_meta, read_predictions
from leaf.evaluation.registry import Scoring
from leaf.evaluation.systems import evaluate_systems, name_systems
from leaf.files import read_rows, write_rows
from tests.helpers.wordnet import write_wordnet


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose model is a folder, for its checksum, and an adapter folder."""
    for name, file in (("model", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        (tmp_path / name / "weights.safetensors").write_bytes(b"weights")
    return LeafConfig(model=str(tmp_path / "model"), task="tiny", max_new_tokens=6)


def asked(recipe, *, greedy=False, seeds=(42, 43), metrics=("chrf",), paths=None):
    decoding = Decoding.of_recipe(recipe, greedy=greedy, seeds=seeds)
    return {"decoding": decoding, "scoring": Scoring(metrics, paths=paths)}


def evaluated(recipe, policy, rows, out, **options):
    """Evaluate the bare model into `out` and return the result, and the lines about it."""
    said = []
    how = {"split": "test", "say": said.append, **asked(recipe, **options)}
    return evaluate_systems(recipe, {"base": None}, lambda adapter: policy, rows, out, **how)["base"], said


def test_systems_are_named_after_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/best", "runs/b/best", "other/b/best"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    assert list(name_systems("org/model", [], with_base=False)) == ["model"]
    named = name_systems("demo", ["runs/a/best", "my run=runs/b/best"], with_base=True)
    assert {name: str(path) for name, path in named.items()} == {
        "demo": "None",
        "a-best": "runs/a/best",
        "my-run": "runs/b/best",
    }
    with pytest.raises(ConfigError, match="NAME=DIR"):
        name_systems("demo", ["runs/b/best", "other/b/best"], with_base=False)
    with pytest.raises(ConfigError, match="has no adapter"):
        name_systems("demo", ["runs/a"], with_base=False)


def test_rows_are_decoded_in_batches_of_the_size_asked_for(policy, rows, recipe, tmp_path, monkeypatch):
    embed, sizes = policy.embed, []
    monkeypatch.setattr(policy, "embed", lambda batch: sizes.append(len(batch)) or embed(batch))
    three = evaluate(policy, rows, Decoding(max_new_tokens=6, batch_size=3), Scoring(("chrf",)))
    assert sizes == [3, 1]
    whole = evaluate(policy, rows, Decoding(max_new_tokens=6), Scoring(("chrf",)))
    assert whole.passes == three.passes  # float32
    recipe.eval_batch_size = 2
    sizes.clear()
    evaluated(recipe, policy, rows, tmp_path / "out", seeds=(42,))
    assert sizes == [2, 2]
    assert read_meta(tmp_path / "out/base.jsonl")["made_with"]["decoding"]["batch_size"] == 2


def test_several_systems_go_on_where_they_stopped(policy, rows, recipe, tmp_path, monkeypatch):
    systems = {"base": None, "tuned": tmp_path / "adapter"}
    loaded = []

    def load(adapter):
        loaded.append(adapter)
        return policy

    def run(**options):
        how = {"split": "test", "say": lambda line: None, **asked(recipe, **options)}
        return evaluate_systems(recipe, systems, load, rows, tmp_path / "out", **how)

    calls = []

    def cut(policy, rows, decoding, **options):
        calls.append(decoding.seeds)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(policy, rows, decoding, **options)

    monkeypatch.setattr(systems_module, "predict", cut)
    with pytest.raises(KeyboardInterrupt):
        run()
    results = run()
    assert calls == [(42, 43), (42, 43), (42, 43)]  # the first system was not sampled again
    assert loaded == [None, tmp_path / "adapter", tmp_path / "adapter"]
    again = run(metrics=("chrf", "wer"))
    assert len(calls) == 3
    assert len(loaded) == 3
    assert again["base"].scores["chrf"] == results["base"].scores["chrf"]
    assert read_predictions(tmp_path / "out/base.jsonl").passes == results["base"].passes
    assert run(seeds=(42, 43, 44))["base"].predictions.seeds == [42, 43, 44]
    assert calls[3:] == [(44,), (44,)]
    meta = read_meta(tmp_path / "out/tuned.jsonl")
    assert len(meta["made_with"]["adapter"]["sha256"]) == 64
    assert meta["made_with"]["decoding"]["temperature"] == 0.9
    assert meta["made_with"]["model"]["name"] == "model"
    assert str(tmp_path) not in json.dumps(meta)
    assert prediction_files([tmp_path / "out"]) == [tmp_path / "out/base.jsonl", tmp_path / "out/tuned.jsonl"]
    (tmp_path / "adapter/weights.safetensors").write_bytes(b"other")
    with pytest.raises(RunError, match="made with another adapter"):
        run()
    recipe.eval_temperature = 0.5
    with pytest.raises(RunError, match="made with another decoding"):
        run()


def test_one_system_is_loaded_at_a_time(policy, rows, recipe, tmp_path):
    loaded = []

    def load(adapter):
        assert all(one() is None for one in loaded)
        one = copy.copy(policy)
        loaded.append(weakref.ref(one))
        return one

    how = {"split": "test", "say": lambda line: None, **asked(recipe, greedy=True)}
    evaluate_systems(recipe, {"base": None, "tuned": tmp_path / "adapter"}, load, rows, tmp_path / "out", **how)
    assert len(loaded) == 2


def test_an_interrupted_pass_goes_on_behind_its_last_whole_batch(policy, rows, recipe, tmp_path, monkeypatch):
    recipe.eval_batch_size = 2
    whole = evaluated(recipe, policy, rows, tmp_path / "whole")[0]
    embed, sizes = policy.embed, []

    def embedded(batch):
        sizes.append([row["id"] for row in batch])
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return embed(batch)

    monkeypatch.setattr(policy, "embed", embedded)
    with pytest.raises(KeyboardInterrupt):
        evaluated(recipe, policy, rows, tmp_path / "out")
    partial = tmp_path / "out/base.unfinished"
    left = partial.read_bytes()
    assert str(tmp_path).encode() not in left
    with pytest.raises(DataError, match="has no prediction files"):
        prediction_files([tmp_path / "out"])
    partial.write_bytes(left + b'{"1": [["torn')
    result, said = evaluated(recipe, policy, rows, tmp_path / "out")
    assert sizes == [["0", "3"], ["1", "2"], ["1", "2"]]  # the first batch was not said again
    assert f"{partial} has the predictions of 2 rows from before an interruption; they are used" in said
    assert result.passes == whole.passes
    assert (tmp_path / "out/base.jsonl").read_text() == (tmp_path / "whole/base.jsonl").read_text()
    assert not partial.exists()
    # Other settings, such as another seed: what was left is not theirs.
    (tmp_path / "out/base.jsonl").unlink()
    partial.write_bytes(left)
    sizes[:] = [[], []]
    result, said = evaluated(recipe, policy, rows, tmp_path / "out", seeds=(42,))
    assert len(sizes) == 4
    assert said[0] == f"{partial} was left by an evaluation with other settings; it is not used, and overwritten"
    assert result.passes == whole.passes[:1]


def test_recordings_are_looked_at_before_anything_is_said(policy, rows, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "embed", None)
    long = {"array": np.full(16000 * 3, 0.1, dtype=np.float32), "sampling_rate": 16000}
    with pytest.raises(
        AudioError, match=r"1 of 5 rows have no usable audio: 'long'. The first: Row 'long': .* at most 2 s"
    ):
        evaluated(recipe, policy, [{**rows[0], "id": "long", "audio": long, "seconds": 3.0}, *rows], tmp_path / "out")
    with pytest.raises(AudioError, match=r"--max-seconds.*tolerate=skip"):
        evaluated(recipe, policy, [{**rows[0], "id": "long", "audio": long}, *rows], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    recipe.tolerate = "skip"
    with pytest.raises(AudioError, match="No row is left to evaluate"):
        evaluated(recipe, policy, [{**rows[0], "audio": long}], tmp_path / "out")


def test_rows_without_usable_audio_are_left_out_where_the_recipe_says_so(policy, rows, recipe, tmp_path):
    usable = evaluated(recipe, policy, rows, tmp_path / "usable")[0]
    recipe.tolerate = "skip"
    bad = {"long": np.full(16000 * 3, 0.1, dtype=np.float32), "silent": np.zeros(16000, dtype=np.float32)}
    bad = [{**rows[0], "id": i, "audio": {"array": wave, "sampling_rate": 16000}} for i, wave in bad.items()]
    result, said = evaluated(recipe, policy, [bad[0], *rows, bad[1]], tmp_path / "out")
    assert result.passes == usable.passes
    assert result.rows == rows
    assert result.scores == usable.scores
    file = tmp_path / "out/base.jsonl"
    assert [line.split(":")[1] for line in said[:2]] == [" Row 'long'", " Row 'silent'"]
    left_out = "base: 2 of 6 rows are left out for their audio, 'long', 'silent'; "
    left_out += f"{file.with_suffix('.meta.json')} lists all"
    assert said[-1] == left_out
    assert read_meta(file)["left_out"] == ["long", "silent"]
    assert [item["id"] for item in read_predictions(file).items] == ["0", "1", "2", "3"]
    assert "4 items of 4 recordings (2 more left out for their audio)" in compare_files([file], metrics=["chrf"])
    # Other metrics, and further passes: of the same items.
    assert evaluated(recipe, policy, [bad[0], *rows, bad[1]], tmp_path / "out", metrics=("wer",))[1][-1] == left_out
    more = evaluated(recipe, policy, [bad[0], *rows, bad[1]], tmp_path / "out", seeds=(42, 43, 44))[0]
    assert len(more.passes[2]) == 4
    lost = {**rows[3], "seconds": 9.0}
    with pytest.raises(AudioError, match="Earlier passes have them"):
        evaluated(recipe, policy, [bad[0], *rows[:3], lost, bad[1]], tmp_path / "out", seeds=(42, 43, 44, 45))


def test_a_repeated_evaluation_scores_by_the_columns_that_rows_have_now(policy, rows, recipe, tmp_path):
    out = tmp_path / "out"
    whole: dict[str, Any] = {"metrics": ("bleu", "rewards/chrf/mean")}

    def run(some, folder=out):
        how = {"split": "test", "say": said.append, **asked(recipe, **whole)}
        return evaluate_systems(recipe, {"base": None}, lambda adapter: policy, some, folder, **how)["base"]

    said: list[str] = []
    first = run(rows)
    line = "base: references or other columns changed since"
    run(rows)
    assert not any(one.startswith(line) for one in said)
    texts = first.passes[0]
    for number, changed in enumerate(
        (
            [{**row, "reference": text} for row, text in zip(rows, texts, strict=True)],
            [{**row, "references": [row["reference"], text]} for row, text in zip(rows, texts, strict=True)],
            [{**row, "reference_language": "zh"} for row in rows],
            [{**row, "text": "else", "utterance": "one"} for row in rows],
        )
    ):
        said.clear()
        again, anew = run(changed), run(changed, tmp_path / f"anew{number}")
        assert any(one.startswith(line) for one in said)
        said.clear()
        assert run(changed).scores == again.scores
        assert not any(one.startswith(line) for one in said)
        assert again.passes == first.passes
        assert (again.scores, again.signatures, again.intervals) == (anew.scores, anew.signatures, anew.intervals)
        files = [folder / "base.jsonl" for folder in (out, tmp_path / f"anew{number}")]
        assert files[0].read_text() == files[1].read_text()
    # Kept values of rewards that were not asked for again are those of the old columns.
    whole["metrics"] = ("chrf",)
    run(rows)
    assert list(read_meta(out / "base.jsonl")["metrics"]) == ["chrf"]


def test_a_repeated_evaluation_of_other_recordings_is_refused(policy, rows, recipe, tmp_path):
    for number, row in enumerate(rows):
        soundfile.write(tmp_path / f"{number}.wav", row["audio"]["array"], 16000)
        row["audio"] = str(tmp_path / f"{number}.wav")
    evaluated(recipe, policy, rows, tmp_path / "out")
    (tmp_path / "moved").mkdir()
    moved = []
    for number, row in enumerate(rows):
        copy_of = shutil.copy(row["audio"], tmp_path / f"moved/{number}.wav")
        moved.append({**row, "audio": str(copy_of)})
    evaluated(recipe, policy, moved, tmp_path / "out")
    for other in ({"offset": 0.1}, {"duration": 0.5}):
        with pytest.raises(RunError, match="made with other items"):
            evaluated(recipe, policy, [{**rows[0], **other, "seconds": None}, *rows[1:]], tmp_path / "out")
    soundfile.write(tmp_path / "1.wav", 0.5 * soundfile.read(tmp_path / "1.wav")[0], 16000)
    with pytest.raises(RunError, match="made with other items"):
        evaluated(recipe, policy, rows, tmp_path / "out")


def test_stretches_that_were_recordings_of_their_own_are_scored_anew(policy, rows, recipe, tmp_path):
    """Earlier versions named a recording after the stretch of it, so a file of theirs has as many as it has rows."""
    soundfile.write(tmp_path / "long.wav", np.tile(rows[0]["audio"]["array"], 4), 16000)
    heard = [
        {
            **row,
            "audio": str(tmp_path / "long.wav"),
            "offset": 0.1 * i,
            "duration": 0.1,
            "utterance": None,
            "seconds": None,
        }
        for i, row in enumerate(rows)
    ]
    first, _ = evaluated(recipe, policy, heard, tmp_path / "out", metrics=("chrf",))
    file = tmp_path / "out/base.jsonl"
    assert len(set(read_predictions(file).groups)) == 1
    written = file.read_text()
    write_rows(file, [{**row, "utterance": f"long.wav#{row['id']}"} for row in read_rows(file)])
    assert len(set(read_predictions(file).groups)) == 4
    again, said = evaluated(recipe, policy, heard, tmp_path / "out", metrics=("chrf",))
    assert again.passes == first.passes
    assert file.read_text() == written
    assert any("references or other columns changed" in line for line in said)


def test_values_of_rewards_outlast_other_calls_and_stop_those_that_would_drop_them(policy, rows, recipe, tmp_path):
    out = tmp_path / "out"
    evaluated(recipe, policy, rows, out, metrics=("rouge_l",))
    decoding = Decoding.of_recipe(recipe, greedy=False, seeds=(42, 43))
    how = {"split": "test", "say": lambda line: None, "decoding": decoding}
    scoring = Scoring(("wer",), lowercase=True)
    evaluate_systems(recipe, {"base": None}, lambda adapter: policy, rows, out, scoring=scoring, **how)
    assert list(read_predictions(out / "base.jsonl").kept) == ["rewards/rouge_l/mean"]
    before = (out / "base.jsonl").read_text()
    with pytest.raises(RunError, match=r"has values of rewards/rouge_l/mean .* --metrics chrf,rewards/rouge_l/mean"):
        evaluated(recipe, policy, rows, out, seeds=(42, 43, 44))
    assert (out / "base.jsonl").read_text() == before
    result, _ = evaluated(recipe, policy, rows, out, seeds=(42, 43, 44), metrics=("chrf", "rewards/rouge_l/mean"))
    assert len(result.passes) == len(result.predictions.kept["rewards/rouge_l/mean"]) == 3


def test_metrics_that_take_data_are_kept_for_those_without_it(policy, rows, recipe, tmp_path, monkeypatch):
    from leaf.evaluation import model_metrics

    paths = {"meteor": str(write_wordnet(tmp_path / "dict"))}
    result, _ = evaluated(recipe, policy, rows, tmp_path / "out", metrics=("meteor",), paths=paths)
    # Another metric is asked for: what took data stays.
    evaluated(recipe, policy, rows, tmp_path / "out", metrics=("wer",))
    assert list(read_meta(tmp_path / "out/base.jsonl")["metrics"]) == ["meteor", "wer"]
    monkeypatch.setattr(model_metrics, "BUILDERS", {})
    scored, signature = read_predictions(tmp_path / "out/base.jsonl").scored("meteor", lowercase=False)
    assert scored.value() == result.scores["meteor"]
    assert signature.startswith("meteor|tok:treebank")

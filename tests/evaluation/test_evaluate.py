"""One evaluation: its passes and scores, what is refused before anything is decoded, and what changes no prediction."""

import numpy as np
import pytest
import torch

from leaf.errors import ConfigError, DataError
from leaf.evaluation import evaluate as module
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.predict import Decoding, predict
from leaf.evaluation.predictions import Predictions, kept_items, read_meta, read_predictions
from leaf.evaluation.registry import Scoring, bootstrap, score
from leaf.files import read_rows
from leaf.model.sampling import sample


def test_passes_are_scored_one_by_one_and_averaged(policy, rows):
    result = evaluate(
        policy, rows, Decoding(max_new_tokens=6, seeds=(42, 43, 44)), Scoring(("chrf", "wer"), intervals=True)
    )
    assert len(result.passes) == 3
    assert result.passes[0] != result.passes[1]
    references = [row["reference"] for row in rows]
    each = [score(texts, references, ["chrf"])["chrf"].value for texts in result.passes]
    assert result.scores["chrf"] == pytest.approx(np.mean(each))
    assert result.spreads["chrf"] == (min(each), max(each))
    assert result.signatures["chrf"].endswith("|decoding:sampled:T0.9:p0.9:seeds42,43,44")
    low, high = result.intervals["chrf"]
    assert low <= result.scores["chrf"] <= high
    assert set(result.values()) == {"chrf", "wer", "truncated", "length_mean"}
    one = evaluate(policy, rows, Decoding(max_new_tokens=6, seeds=(43,)), Scoring(("chrf",), intervals=True))
    assert one.passes == result.passes[1:2]
    assert one.intervals["chrf"] == bootstrap(one.passes[0], references, "chrf", groups=["0", "1", "2", "3"])[1:]


def test_a_greedy_evaluation_has_one_pass_without_a_seed(policy, rows):
    result = evaluate(policy, rows, Decoding(greedy=True, max_new_tokens=6, seeds=(1, 2)), Scoring(("bleu",)))
    assert len(result.passes) == 1
    assert result.predictions.seeds == [None]
    assert result.signatures["bleu"].endswith("|decoding:greedy")
    assert result.intervals == {}


def test_what_would_fail_after_the_passes_is_refused_before(policy, rows, monkeypatch):
    monkeypatch.setattr(module, "predict", None)
    with pytest.raises(ConfigError, match=r"'blue' is unknown\. Did you mean 'bleu'\? Allowed are bleu"):
        evaluate(policy, rows, scoring=Scoring(("blue",)))
    with pytest.raises(ConfigError, match="BERTScore needs a model"):
        evaluate(policy, rows, scoring=Scoring(("bertscore",)))
    with pytest.raises(DataError, match=r"1 of 4 rows have no reference.*leaf judge"):
        evaluate(policy, [{**rows[0], "reference": ""}, *rows[1:]])
    with pytest.raises(DataError, match="no rows"):
        evaluate(policy, [])


def test_rows_without_references_give_predictions_alone(policy, rows, tmp_path):
    result = evaluate(policy, [{**row, "reference": ""} for row in rows], Decoding(max_new_tokens=4), Scoring(()))
    result.write(tmp_path / "x.jsonl")
    assert result.scores == {}
    assert read_predictions(tmp_path / "x.jsonl").passes == result.passes


def test_a_file_recomputes_every_score_without_the_model(policy, rows, tmp_path):
    result = evaluate(
        policy, rows, Decoding(max_new_tokens=6, seeds=(42, 43)), Scoring(("bleu", "wer"), lowercase=True)
    )
    result.write(tmp_path / "x.jsonl")
    lines = read_rows(tmp_path / "x.jsonl")
    assert [(row["id"], row["pass"], row["seed"]) for row in lines] == [
        (str(i), n, 42 + n) for n in range(2) for i in range(4)
    ]
    known = read_predictions(tmp_path / "x.jsonl")
    for name in ("bleu", "wer"):
        scored, signature = known.scored(name, lowercase=True)
        assert scored.value() == result.scores[name]
        assert read_meta(tmp_path / "x.jsonl")["metrics"][name]["signature"] == signature
    assert known.truncated == result.predictions.truncated
    assert known.items == kept_items(rows)
    assert "array" not in (tmp_path / "x.jsonl").read_text()


def test_a_greedy_pass_beside_sampled_ones_changes_neither(policy, rows):
    together = predict(policy, rows, Decoding(max_new_tokens=6, seeds=(42, None, 43)))
    assert together[1] == predict(policy, rows, Decoding(max_new_tokens=6, greedy=True))[0]
    assert [together[0], together[2]] == predict(policy, rows, Decoding(max_new_tokens=6, seeds=(42, 43)))
    assert together[0] != together[1] != together[2]
    with pytest.raises(ConfigError, match="greedy has 2 values for 3 completions"):
        sample(policy, policy.embed(rows[:1]), num_completions=3, max_new_tokens=2, greedy=[True, False])


def test_a_column_of_seconds_may_hold_anything(policy, rows):
    how = Decoding(greedy=True, max_new_tokens=3, batch_size=2)
    plain = predict(policy, rows, how)
    said = [None, "3.2 s", "", float("nan")]
    assert predict(policy, [{**r, "seconds": s} for r, s in zip(rows, said, strict=True)], how) == plain


def test_predictions_do_not_depend_on_torchs_global_generator(policy, rows):
    torch.manual_seed(1)
    first = evaluate(policy, rows, Decoding(max_new_tokens=4), Scoring(())).passes
    torch.manual_seed(2)
    assert evaluate(policy, rows, Decoding(max_new_tokens=4), Scoring(())).passes == first
    assert isinstance(evaluate(policy, rows, Decoding(max_new_tokens=4), Scoring(())).predictions, Predictions)

"""Several right references: all of them as sacreBLEU takes them, else the best one, in metrics and rewards alike."""

import json

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.errors import DataError
from leaf.evaluation.alike import item_difference
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.predictions import Predictions, Said, kept_items, read_predictions
from leaf.evaluation.registry import bootstrap, paired_bootstrap, score
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards

SAID = ["the cat sat on the mat today", "press the star key to leave now", "it rains"]
ONE = ["a cat was on a mat yesterday", "push star in order to leave", "it rains"]
OTHER = ["the cat sat on the mat", "press the star key to leave", "it is raining hard"]
RIGHT = [[a, b] for a, b in zip(ONE, OTHER, strict=True)]


@pytest.mark.parametrize(("name", "scorer"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_bleu_and_chrf_take_all_references_as_sacrebleu_does(name, scorer):
    got = score(SAID, RIGHT, [name])[name]
    assert got.value == pytest.approx(scorer.corpus_score(SAID, [ONE, OTHER]).score)
    assert "|nrefs:2|" in got.signature
    uneven = [RIGHT[0], [OTHER[1]], RIGHT[2]]
    got = score(SAID, uneven, [name])[name]
    assert got.value == pytest.approx(
        scorer.corpus_score(SAID, [[ONE[0], OTHER[1], ONE[2]], [OTHER[0], None, OTHER[2]]]).score
    )
    assert "|nrefs:var|" in got.signature


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("bleu", "chrf")])
def test_other_metrics_take_the_best_reference_of_each_item(name):
    got = score(SAID, RIGHT, [name])[name]
    # The second reference is nearer for the first two items, the first one for the last, in every metric.
    assert got.value == pytest.approx(score(SAID, [OTHER[0], OTHER[1], ONE[2]], [name])[name].value)
    assert got.signature.endswith("|best-of-refs:2")
    assert "best-of" not in score(SAID, [[text] for text in ONE], [name])[name].signature


@pytest.mark.parametrize("name", list(REWARDS))
def test_rewards_take_several_references(name):
    reward = REWARDS[name]
    alone = [reward([said], reference=[one])[0] for said, one in zip(SAID, ONE, strict=True)]
    beside = reward(SAID, reference=ONE, references=[*RIGHT[:2], None])
    assert beside[2] == alone[2] == pytest.approx(1.0)
    best = [reward([said], reference=[other])[0] for said, other in zip(SAID, OTHER, strict=True)]
    if name != "bleu":  # its n-grams may come from both
        assert beside[:2] == pytest.approx(best[:2])
    assert all(ours >= max(pair) - 1e-9 for ours, pair in zip(beside[:2], zip(alone, best, strict=True), strict=False))


def test_rows_bring_their_references_to_rewards_and_prediction_files(tmp_path):
    rows = [
        {"id": "a", "prompt": "p", "reference": ONE[0], "references": RIGHT[0]},
        {"prompt": "q", "reference": ONE[2]},
    ]
    result = Rewards(["exact_match"]).of_texts(rows, [[OTHER[0]], [ONE[2]]])
    assert result.totals.tolist() == [1.0, 1.0]
    predictions = Predictions("s", kept_items(rows))
    predictions.add([None], [[Said(OTHER[0]), Said(ONE[2])]])
    predictions.write(tmp_path / "s.jsonl")
    read = read_predictions(tmp_path / "s.jsonl")
    scored, signature = read.scored("exact_match", lowercase=False)
    assert scored.value() == 100.0
    assert signature.endswith("|best-of-refs:var")
    other = Predictions("o", [{**item, "references": None} for item in read.items])
    assert "references differ for 1 items" in str(item_difference(read, other))


def test_a_file_of_another_program_may_list_references(tmp_path):
    lines = [{"id": "a", "prediction": OTHER[0], "reference": RIGHT[0]}]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_predictions(tmp_path / "other.jsonl").scored("exact_match", lowercase=False)[0].value() == 100.0


def test_bootstraps_take_lists_and_empty_references_are_refused():
    assert bootstrap(OTHER, RIGHT, "exact_match")[0] == 100.0
    assert paired_bootstrap(ONE, SAID, RIGHT, "exact_match")[0] == pytest.approx(-200 / 3)
    for wrong in ([], ["x", " "]):
        with pytest.raises(DataError, match="Reference 0 is empty"):
            score(["x"], [wrong], ["bleu"])

import jiwer
import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from leaf.errors import ConfigError, DataError
from leaf.metrics import METRICS, _draws, _resampled, bootstrap, mean_interval, metric, paired_bootstrap, score

OURS = ["Press one to leave.", "You have two new messages", "", "It is Monday, March third.", "zero"]
THEIRS = ["Press one to leave the menu.", "You have two old messages.", "Hello there.", "It is Monday, March third.", "a"]


def test_values_are_those_of_the_reference_packages():
    got = {name: value.value for name, value in score(OURS, THEIRS, list(METRICS)).items()}
    assert got["bleu"] == sacrebleu.corpus_bleu(OURS, [THEIRS]).score
    assert got["chrf"] == sacrebleu.corpus_chrf(OURS, [THEIRS]).score
    assert got["wer"] == pytest.approx(100 * jiwer.wer(THEIRS, OURS))
    assert got["cer"] == pytest.approx(100 * jiwer.cer(THEIRS, OURS))
    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = rouge_scorer.RougeScorer([name], use_stemmer=False)
        each = [scorer.score(r, p)[name].fmeasure for p, r in zip(OURS, THEIRS, strict=True)]
        assert got[name] == pytest.approx(100 * float(np.mean(each)))
    assert got["exact_match"] == 20.0
    lower = score(["PRESS"], ["press"], ["bleu", "chrf"], lowercase=True)
    assert lower["chrf"].value == 100.0
    assert "lowercase:yes" in lower["chrf"].signature


def test_signatures_reproduce():
    signatures = {name: value.signature for name, value in score(OURS, THEIRS, list(METRICS)).items()}
    assert signatures["bleu"] == f"bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert all("|" in signature for signature in signatures.values())


@pytest.mark.parametrize("name", ["bleu", "chrf", "wer"])
def test_a_resample_is_scored_as_the_metric_scores_it(name):
    items = metric(name).items(OURS, THEIRS)
    draws = _draws(len(OURS), 5, seed=1)
    for row, value in zip(draws, _resampled(name, items, draws), strict=True):
        index = [i for i, count in enumerate(row.astype(int)) for _ in range(count)]
        again = score([OURS[i] for i in index], [THEIRS[i] for i in index], [name])[name].value
        assert value == pytest.approx(again, abs=1e-9)


def test_bootstrap_point_interval_and_groups():
    value, low, high = bootstrap(OURS, THEIRS, "bleu")
    assert value == score(OURS, THEIRS, ["bleu"])["bleu"].value
    assert low <= value <= high
    # One group holds everything: every resample is the corpus itself.
    assert bootstrap(OURS, THEIRS, "chrf", groups=["a"] * 5)[1:] == pytest.approx((score(OURS, THEIRS)["chrf"].value,) * 2)


def test_paired_bootstrap_sees_a_clear_difference_and_none():
    better = THEIRS * 8
    difference, low, _, p = paired_bootstrap(OURS * 8, better, THEIRS * 8, "chrf")
    assert difference == pytest.approx(100 - score(OURS * 8, better, ["chrf"])["chrf"].value)
    assert low > 0
    assert p < 0.01
    assert paired_bootstrap(OURS, OURS, THEIRS, "bleu") == (0.0, 0.0, 0.0, 1.0)


def test_student_interval_against_the_table():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.30265 / np.sqrt(3), abs=1e-4))  # t(0.975, 2)
    assert mean_interval([0.0, 1.0])[1] == pytest.approx(12.7062 * np.sqrt(0.5) / np.sqrt(2), abs=1e-3)  # t(0.975, 1)
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert mean_interval(five)[1] == pytest.approx(2.77645 * np.std(five, ddof=1) / np.sqrt(5), abs=1e-4)
    with pytest.raises(DataError, match="at least 2"):
        mean_interval([1.0])


def test_refusals():
    with pytest.raises(DataError, match="Reference 1 is empty"):
        score(["a", "b"], ["a", " "])
    with pytest.raises(DataError, match="1 predictions came for 2"):
        score(["a"], ["a", "b"])
    with pytest.raises(ConfigError, match="allowed are bleu"):
        score(["a"], ["a"], ["blue"])

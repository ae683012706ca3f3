"""Metrics of texts: the values of the reference packages, case, white space, signatures, and what is refused."""

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics.chrf import CHRF

from leaf.errors import ConfigError, DataError
from leaf.evaluation.bootstrap import mean_interval
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.registry import bootstrap, score
from leaf.text import exact_match, normalise, token_f1
from tests.helpers.answers import OURS, THEIRS

WORDS = st.lists(st.sampled_from(["press", "one", "two", "Now", "menu", "."]), min_size=1, max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS | st.just(""), WORDS), min_size=1, max_size=6)


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
    # 4 of 4 + 6, 4 of 5 + 5, none, all, none: (0.8 + 0.8 + 0 + 1 + 0) / 5.
    assert got["token_f1"] == pytest.approx(52.0)


def test_values_by_hand():
    assert score(["a b x"], ["a b c d"], ["wer"])["wer"].value == 50.0  # one substitution, one deletion, of 4
    assert score(["a b c"], ["a"], ["wer"])["wer"].value == 200.0
    assert score(["ab", "c"], ["abcd", "c"], ["cer"])["cer"].value == 40.0  # 2 of 5 characters, not a mean of rates


def test_lowercase_is_that_of_sacrebleu():
    shouted = [text.upper() for text in OURS]
    got = score(shouted, THEIRS, ["bleu", "chrf"], lowercase=True)
    assert got["bleu"].value == sacrebleu.corpus_bleu(shouted, [THEIRS], lowercase=True).score
    assert got["chrf"].value == CHRF(lowercase=True).corpus_score(shouted, [THEIRS]).score
    for name, one in got.items():
        assert "|case:lc|" in one.signature
        assert one.value > score(shouted, THEIRS, [name])[name].value


def test_lowercase_of_the_others():
    assert score(["A B"], ["a b"], ["wer"])["wer"].value == 100.0
    assert score(["A B"], ["a b"], ["wer"], lowercase=True)["wer"].value == 0.0
    for name in ("exact_match", "token_f1", "rougeL"):  # fold case in any event, and say so
        assert score(["A B"], ["a b"], [name])[name].value == 100.0
        assert "|case:lc|" in score(["A B"], ["a b"], [name])[name].signature


def test_signatures_reproduce():
    signatures = {name: value.signature for name, value in score(OURS, THEIRS, list(METRICS)).items()}
    version = sacrebleu.__version__
    assert signatures["bleu"] == f"bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert signatures["chrf"] == f"chrf|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert signatures["wer"].startswith("wer|punctuation:yes|case:mixed|jiwer:4")
    assert signatures["rougeL"].startswith("rougeL|f1|stemmer:no|tok:a-z0-9|case:lc|rouge-score:0.1")
    assert len(set(signatures.values())) == len(METRICS)


def test_white_space_is_folded():
    for name in METRICS:  # jiwer alone takes "a\nb" for one word
        ours, theirs = ["Press  one\nnow\t "], [" Press one\u00a0now"]
        assert (
            score(ours, theirs, [name])[name].value == score(["Press one now"], ["Press one now"], [name])[name].value
        )


def test_normalise():
    assert normalise("  “Don’t”  go —\nNOW! ") == "dont go now"
    assert normalise("3.5 %") == "3.5%"
    assert normalise(" ?! ") == "?!"  # nothing else is left: it must differ from an empty text
    assert normalise(" ") == ""
    assert exact_match("", "?") == token_f1("", "?") == 0.0
    assert exact_match("?", "?") == token_f1("?", "?") == 1.0
    assert token_f1("a a b", "a b b c") == pytest.approx(4 / 7)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20))
def test_normalise_twice_is_once(text):
    assert normalise(normalise(text)) == normalise(text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(METRICS)), PAIRS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_a_copy_is_perfect(name, pairs, random):
    ours, theirs = [list(side) for side in zip(*pairs, strict=True)]
    shuffled = random.sample(pairs, len(pairs))
    ours_again, theirs_again = [list(side) for side in zip(*shuffled, strict=True)]
    value = score(ours, theirs, [name])[name].value
    assert value == pytest.approx(score(ours_again, theirs_again, [name])[name].value)
    assert value >= 0.0
    assert value <= 100.0 + 1e-9 or name in ("wer", "cer")
    spelled = [text + " menu press one two" for text in theirs]  # long enough for a 4-gram, some word for ROUGE
    perfect = score(spelled, spelled, [name])[name].value
    assert perfect == pytest.approx(0.0 if name in ("wer", "cer") else 100.0)


def test_an_empty_prediction_is_worth_nothing():
    values = {name: one.value for name, one in score([""], ["a b"], list(METRICS)).items()}
    assert values == {name: 100.0 if name in ("wer", "cer") else 0.0 for name in METRICS}


def test_refusals():
    with pytest.raises(DataError, match="Reference 1 is empty"):
        score(["a", "b"], ["a", " "])
    with pytest.raises(DataError, match="1 predictions came for 2"):
        score(["a"], ["a", "b"])
    with pytest.raises(DataError, match="at least 1"):
        score([], [])
    with pytest.raises(DataError, match="Item 0 has prediction None"):
        score([None], ["a"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="Allowed are bleu"):
        score(["a"], ["a"], ["blue"])
    with pytest.raises(DataError, match="2 group keys came for 1"):
        bootstrap(["a"], ["a"], "bleu", groups=["a", "b"])
    with pytest.raises(ConfigError, match="allowed is 1 or more"):
        bootstrap(["a"], ["a"], "bleu", samples=0)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            bootstrap(["a"], ["a"], "bleu", level=level)
        with pytest.raises(ConfigError, match="between 0 and 1"):
            mean_interval([1.0, 2.0], level=level)


def test_exact_match_with_punctuation_is_equality_as_in_the_published_code():
    ours, theirs = ["It is  Monday.", "it is Monday.", "It is Monday"], ["It is Monday."] * 3
    name = "exact_match:punctuation=yes"
    values = {lowercase: score(ours, theirs, [name], lowercase=lowercase)[name] for lowercase in (False, True)}
    assert values[False].value == pytest.approx(100 / 3)
    assert values[True].value == pytest.approx(200 / 3)
    assert values[False].signature.startswith("exact_match|punctuation:yes|case:mixed|")
    assert score(ours, theirs, ["exact_match"])["exact_match"].value == 100.0
    with pytest.raises(ConfigError, match="allowed are yes and no"):
        score(ours, theirs, ["exact_match:punctuation=maybe"])


def test_bleu_may_fold_case_by_itself():
    folded = score(OURS, THEIRS, ["bleu:lowercase=yes", "bleu"])
    plain = score(["PRESS ONE to leave the menu."], THEIRS[:1], ["bleu:lowercase=yes", "bleu"])
    assert plain["bleu:lowercase=yes"].value == pytest.approx(100.0)
    assert plain["bleu"].value < 70
    assert "case:lc" in folded["bleu:lowercase=yes"].signature
    assert folded["bleu:lowercase=yes"].value == score(OURS, THEIRS, ["bleu"], lowercase=True)["bleu"].value

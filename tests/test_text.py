"""Comparing texts: one Unicode form on both sides, whoever wrote them."""

import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.data import TASKS, load
from leaf.data.hashing import stable_fraction
from leaf.evaluation.alike import item_difference
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.predictions import Predictions
from leaf.evaluation.registry import score
from leaf.rewards.functions import REWARDS
from leaf.text import edits, exact_match, normalise, rouge_f, token_f1

COMPOSED = "Où est l'élève çà et là, à l'école"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)  # as macOS and some keyboards write it


@pytest.mark.parametrize("name", list(METRICS))
@pytest.mark.parametrize("sides", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_every_metric_compares_in_one_unicode_form(name, sides):
    assert COMPOSED != DECOMPOSED
    best = 0.0 if name in ("wer", "cer") else 100.0
    assert score([sides[0]], [sides[1]], [name])[name].value == pytest.approx(best)


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_reward_compares_in_one_unicode_form(name):
    assert REWARDS[name]([DECOMPOSED, COMPOSED], reference=[COMPOSED, DECOMPOSED]) == pytest.approx([1.0, 1.0])


def test_the_functions_of_text_compare_in_one_unicode_form():
    assert normalise(DECOMPOSED) == normalise(COMPOSED)
    assert exact_match(DECOMPOSED, COMPOSED) == 1.0
    assert edits(DECOMPOSED, COMPOSED, characters=True) == (0, len(COMPOSED))
    assert rouge_f("rougeL", DECOMPOSED, COMPOSED) == 1.0


def test_file_names_hash_alike_in_every_unicode_form():
    assert stable_fraction("Aufnahme/für.wav") == stable_fraction(unicodedata.normalize("NFD", "Aufnahme/für.wav"))


def test_the_references_of_two_systems_are_compared_in_one_unicode_form():
    one, same, other = (Predictions(text, [{"id": "1", "reference": text}]) for text in (COMPOSED, DECOMPOSED, "Ou"))
    assert item_difference(one, same) is None
    assert "references differ" in str(item_difference(one, other))


def test_spaces_of_every_kind_are_white_space():
    """A no-break space, as French puts before a colon, and the ideographic space."""
    assert score(["oui :\u00a0non\u3000là"], ["oui : non là"], ["exact_match", "wer"])["wer"].value == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("35", "3.5"),
        ("5", "-5"),
        ("12", "1/2"),
        ("1112", "11:12"),
        ("05", ".05"),
        ("10", "10%"),
        ("35", "3,5"),
        ("−.5", ".5"),
        ("x=-5", "x=5"),
        ("(3,-5)", "(3,5)"),
        ("-€5", "€5"),
        ("$-5", "$5"),
        ("–5", "5"),
        ("x=.5", "x=5"),
    ],
)
def test_numbers_of_different_value_do_not_match(one, other):
    assert exact_match(one, other) == token_f1(other, one) == 0.0
    assert REWARDS["exact_match"]([one], reference=[other]) == [0.0]
    assert score([one], [other], ["wer:normalise=basic"])["wer:normalise=basic"].value >= 100.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("−5", "-5"),
        ("It was (−5).", "it was -5"),
        ("10 %", "10%"),
        ("3：30", "3:30"),
        ("٣٫٥", "٣.٥"),
        ("3.5.", "3.5"),
        ("$.50!", ".50"),
        ("10-15", "1015"),  # hyphens inside words go, as before
        ("B-2, p.5", "b2 p5"),
        ("1. one", "1 one"),
        ("x=-5", "x = −5"),
        ("-$5", "$-5"),
        ("–5 degrees", "-5 degrees"),
        ("10–15", "10-15"),
        ("wait...5", "wait5"),
    ],
)
def test_numbers_of_one_value_match_however_they_are_written(one, other):
    assert exact_match(one, other) == 1.0


def without_punctuation(text):
    """Normalise as before numbers kept their signs."""
    lower = unicodedata.normalize("NFC", text).lower()
    kept = (c for c in lower if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    folded = " ".join("".join(kept).split()) or " ".join(lower.split())
    return unicodedata.normalize("NFC", folded)  # a mark may now follow the letter that stood before a sign


NO_DIGITS = st.text(st.one_of(st.characters(exclude_categories=["Nd", "Cs"]), st.sampled_from("a é.,:/%-−－．％ (")))


@settings(max_examples=300, deadline=None)
@given(NO_DIGITS)
def test_nothing_but_numbers_keeps_its_punctuation(text):
    assert normalise(text) == without_punctuation(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("12a .,:/%-−(")))
def test_normalising_keeps_every_digit_and_letter(text):
    signs = str.maketrans("", "", " .,:/%-−(")
    assert normalise(text).translate(signs) == text.translate(signs)


@pytest.mark.parametrize("task", list(TASKS))
def test_no_reference_of_the_built_in_tasks_has_a_number_with_signs(task):
    assert all(normalise(text) == without_punctuation(text) for text in load(task, "test")["reference"])

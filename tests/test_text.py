"""Comparing texts: one Unicode form on both sides, whoever wrote them."""

import unicodedata

import pytest

from leaf.data.hashing import stable_fraction
from leaf.evaluation.alike import item_difference
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.predictions import Predictions
from leaf.evaluation.registry import score
from leaf.rewards.functions import REWARDS
from leaf.text import edits, exact_match, normalise, rouge_f

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

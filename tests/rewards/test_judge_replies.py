"""What a judge is asked and how its reply is read: templates, settings, scores, verdicts, expectations."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.errors import ConfigError
from leaf.rewards.endpoint import Reply
from leaf.rewards.judge import JudgeSettings, expected_score, parse
from tests.helpers.judging import item


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("direct", "Score: 85", "85"),
        ("direct", " 0 ", "0"),
        ("direct", "**Score: 100**", "100"),
        ("direct", "Score: 70/100.", "70"),
        ("direct", "It is right.\nScore: 90", "90"),
        ("direct", "<think>Score: 10</think>\nScore: 90", "90"),
        ("direct", "Score: 101", None),
        ("direct", "85.5", None),
        ("direct", "-5", None),
        ("direct", "about 85", None),
        ("direct", "Score: 10\nScore: 90", None),
        ("direct", "", None),
        ("rubric", "4", "4"),
        ("rubric", "Score: 5/5", "5"),
        ("rubric", "6", None),
        ("rubric", "3 or 4", None),
        ("pairwise", "Verdict: A", "a"),
        ("pairwise", "verdict: TIE.", "tie"),
        ("pairwise", "B", "b"),
        ("pairwise", "A is better", None),
        ("pairwise", "Verdict: A\nVerdict: B", None),
    ],
)
def test_only_the_form_that_was_asked_for_is_read(kind, text, value):
    assert parse(kind, text) == value


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["direct", "rubric", "pairwise"]), st.text(max_size=30))
def test_whatever_comes_is_a_value_in_range_or_none(kind, text):
    value = parse(kind, text)
    if value is not None:
        assert value in ("a", "b", "tie") if kind == "pairwise" else 0 <= int(value) <= (100 if kind == "direct" else 5)


def test_the_expected_score_by_hand():
    top = [{"token": t, "logprob": p} for t, p in (("4", -1.0), (" 4", -2.0), ("2", -1.0), ("no", 0.0))]
    four = {"token": "4", "logprob": -1.0, "top": top}
    space = {"token": "\n", "logprob": -0.1, "top": top}
    e1, e2 = 0.36787944117144233, 0.1353352832366127
    expected = (4 * (e1 + e2) + 2 * e1) / (2 * e1 + e2)
    assert expected_score(Reply("4", [space, four]), "4") == pytest.approx(expected)
    assert expected_score(Reply("4", None), "4") is None
    assert expected_score(Reply("4", [{**four, "top": []}]), "4") is None
    impossible = {"token": "4", "logprob": -9999.0, "top": [{"token": "4", "logprob": -9999.0}]}
    assert expected_score(Reply("4", [impossible]), "4") is None  # no chance for any digit, as vLLM writes it
    assert expected_score(Reply("4 4", [four, four]), "4") is None  # which of the two is the verdict?


def test_templates_are_filled_once(template):
    how = JudgeSettings.of("direct", template=template, samples=2)
    bodies = how.bodies(item("{reference} {answer} {x}"), "m")
    assert [one["messages"][0]["content"] for one in bodies] == ["{reference} {answer} {x}"] * 2
    assert [one["seed"] for one in bodies] == [0, 1]
    ours = JudgeSettings.of("pairwise")
    assert ours.temperature == 0
    prompt = ours.bodies(item("", answer_a="AAA", answer_b="BBB"), "m")[0]["messages"][0]["content"]
    assert all(text in prompt for text in ("AAA", "BBB", "<reference_answer>\nr\n"))
    assert "reference" not in ours.prompt(has_reference=False)
    extra = JudgeSettings.of("rubric", extra='{"max_tokens": null, "top_logprobs": 5}').bodies(item("x"), "m")[0]
    assert "max_tokens" not in extra
    assert (extra["logprobs"], extra["top_logprobs"]) == (True, 5)


def test_settings_that_do_not_fit(tmp_path, template):
    with pytest.raises(ConfigError, match="Allowed are direct, rubric, pairwise"):
        JudgeSettings.of("best")
    with pytest.raises(ConfigError, match="for pairwise 1"):
        JudgeSettings.of("pairwise", samples=3)
    with pytest.raises(ConfigError, match=r"lacks \{answer_a\}"):
        JudgeSettings.of("pairwise", template=template)
    with pytest.raises(ConfigError, match="cannot be read"):
        JudgeSettings.of("direct", template=tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="are not JSON"):
        JudgeSettings.of("direct", extra="{")
    for option in ({"samples": "5"}, {"temperature": True}, {"max_tokens": 1.5}):
        with pytest.raises(ConfigError, match="give a number"):
            JudgeSettings.of("direct", **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("rubric", "Feedback: 3 facts of 4 are right. [RESULT] 4", "4"),
        ("rubric", "Feedback: fine.\n[RESULT] (5)", "5"),
        ("rubric", "[RESULT] 4 [RESULT] 5", None),
        ("rubric", "[RESULT] 4, I think", None),
        ("rubric", "[RESULT] 7", None),
        ("pairwise", "Feedback: A is shorter. [RESULT] B", "b"),
        ("direct", '{"reasoning": "good", "errors": [], "overall_score": 87.5}', "87.5"),
        ("direct", '```json\n{"score": 60}\n```', "60"),
        ("direct", '{"overall_score": 101}', None),
        ("direct", '{"overall_score": true}', None),
        ("direct", '{"points": 60}', None),
        ("rubric", '{"score": 3}', "3"),
        ("rubric", '{"score": 3.5}', None),
        ("pairwise", '{"score": 3}', None),
    ],
)
def test_replies_of_the_published_judges_are_read(kind, text, wanted):
    assert parse(kind, text) == wanted


def test_behind_a_result_the_last_digit_is_the_score():
    def token(text, top):
        return {
            "token": text,
            "logprob": math.log(top[text]),
            "top": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
        }

    tokens = [token("4", {"4": 0.9}), token("[RESULT]", {"[RESULT]": 0.9}), token(" 4", {" 4": 0.75, " 2": 0.25})]
    assert expected_score(Reply("4 facts. [RESULT] 4", tokens), "4") == pytest.approx(0.75 * 4 + 0.25 * 2)
    assert expected_score(Reply("4 4", tokens), "4") is None


@pytest.mark.parametrize("kind", ["direct", "rubric", "pairwise"])
def test_without_transcripts_the_reference_stands_for_them(kind):
    how = JudgeSettings.of(kind)
    with_both, without = how.prompt(), how.prompt(has_passage=False)
    assert "{passage}" in with_both
    assert "transcript" not in without
    assert "{reference}" in without
    assert "a recording that you do not have" in without
    assert without.count("reference answer") == 1
    # Without a reference either there would be nothing to judge by: the transcript is asked for.
    assert "{passage}" in how.prompt(has_passage=False, has_reference=False)

"""The evaluation section in numbers: scores, differences and verdicts by hand, and which files and items are shown."""

import json

import pytest
import sacrebleu

from leaf.errors import DataError, RunError
from leaf.evaluation.compare import compare_files, load_systems
from leaf.evaluation.predictions import read_predictions
from leaf.evaluation.registry import paired_bootstrap
from leaf.files import read_rows, write_rows, write_text
from leaf.report.evaluation import evaluation_section
from leaf.report.items import chosen_items
from tests.helpers.evaluations import AFTER, BEFORE, REFERENCES, drawn, of, with_reward, write


def judged(path, kind, files, rows, judge="one"):
    meta = {
        "judge": {"kind": kind, "sha256": kind + judge, "signature": f"judge-{kind}|model:m"},
        "judged": [{"system": "x", "sha256": read_predictions(file).digest} for file in files],
        "passes": 1,
        "line": "as it went",
    }
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(path.with_suffix(".meta.json"), json.dumps(meta))


def test_scores_items_and_differences_by_hand(run):
    section = drawn([run])
    (data,) = section.data["sets"]
    assert (data["systems"], data["passes"], data["total"]) == (["test_before", "test_after"], [2, 2], 4)
    exact = of(data, "exact_match")
    # Before: 1 of 4, then 2 of 4; after: 2 of 4 in both passes.
    assert [score[0] for score in exact["scores"]] == [37.5, 50.0]
    assert exact["scores"][0][3:] == [25.0, 50.0]
    assert exact["items"] == [[50.0, 100.0, 0.0, 0.0], [100.0, 0.0, 0.0, 100.0]]
    wrong = of(data, "wer")
    # Edits over 4 + 4 + 2 + 3 = 13 words. Before: two→one and please missing, hello's one, all of three: 6, then 4.
    assert [score[0] for score in wrong["scores"]] == [
        pytest.approx(100 * 5 / 13, abs=1e-4),
        pytest.approx(200 / 13, abs=1e-4),
    ]
    assert wrong["items"] == [[25.0, 0.0, 50.0, 100.0], [0.0, 25.0, 50.0, 0.0]]
    assert (exact["less"], wrong["less"]) == (False, True)
    assert exact["differences"]["0-1"][0] == 12.5
    assert wrong["differences"]["0-1"][0] == pytest.approx(-300 / 13, abs=1e-4)
    item = data["items"][3]
    assert item["said"] == [["", ""], ["two new messages"] * 2]
    assert (item["id"], item["kind"], item["text"]) == ("row3", "mail", "speech 3")
    json.dumps(section.data, allow_nan=False)


def test_cards_have_all_references_of_an_item(tmp_path):
    references = [["at noon", "at twelve"], ["yes"]]
    file = write(tmp_path / "a.jsonl", [["at twelve", "no"]], references=references)
    (data,) = drawn(predictions=[file], audio=False).data["sets"]
    assert [(one["reference"], one.get("references")) for one in data["items"]] == [
        ("at noon", ["at noon", "at twelve"]),
        ("yes", None),
    ]
    assert of(data, "exact_match")["items"] == [[100.0, 0.0]]


def test_lengths_have_no_direction_and_rate_no_items(tmp_path):
    metrics = ("words", "truncated", "exact_match")
    files = [
        write(tmp_path / f"{name}.jsonl", [texts], metrics=metrics) for name, texts in (("a", BEFORE), ("b", AFTER))
    ]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    assert [(one["name"], one["less"], one["neutral"]) for one in data["metrics"]] == [
        ("truncated", True, False),
        ("exact_match", False, False),
        ("words", False, True),
    ]
    assert ", less is better" in compare_files(files).split("truncated: ")[1].splitlines()[0]
    for file in files:
        write(file, [BEFORE], metrics=("words",))
    chosen = chosen_items(drawn(predictions=files, audio=False).data["sets"][0]["metrics"], [{}] * 4, 100)
    assert chosen == [0, 1, 2, 3]


def test_intervals_and_p_are_those_of_compare(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [texts]) for name, texts in (("a", BEFORE), ("b", AFTER))]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    a, b = load_systems(files)
    expected = paired_bootstrap(a.passes[0], b.passes[0], REFERENCES, "wer", groups=a.groups)
    assert of(data, "wer")["differences"]["0-1"] == pytest.approx(expected, abs=1e-4)
    value, low, high, only = of(data, "wer")["scores"][0]
    interval = a.scored("wer", lowercase=False)[0].interval(groups=a.groups)
    assert interval is not None
    assert (low, high) == pytest.approx(interval, abs=1e-4)
    assert only == value


@pytest.mark.parametrize("lowercase", [False, True])
def test_an_items_bleu_is_sentence_bleu(tmp_path, lowercase):
    said = [text.upper() for text in AFTER]
    file = write(tmp_path / "a.jsonl", [said], metrics=["bleu"], lowercase=lowercase)
    (data,) = drawn(predictions=[file], audio=False).data["sets"]
    expected = [
        sacrebleu.sentence_bleu(text, [reference], lowercase=lowercase).score
        for text, reference in zip(said, REFERENCES, strict=True)
    ]
    assert of(data, "bleu")["items"][0] == pytest.approx(expected, abs=1e-4)
    assert data["lowercase"] is lowercase
    assert expected[0] == pytest.approx(100 if lowercase else 0, abs=1e-9)


def test_judges_give_scores_and_verdicts(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [texts]) for name, texts in (("a", BEFORE), ("b", AFTER))]
    for file, scores in zip(files, ((10, 20, None, 60), (30, 20, 100, None)), strict=True):
        rows = [{"id": f"row{i}", "pass": 0, "score": score} for i, score in enumerate(scores)]
        judged(file.with_suffix(".judge-direct-m.jsonl"), "direct", [file], rows)
    verdicts = ("win", "tie", "inconsistent", "win")
    rows = [{"id": f"row{i}", "pass": 0, "score": 7} for i in range(4)]
    judged(files[0].with_suffix(".judge-direct-other.jsonl"), "direct", files[:1], rows, judge="other")
    rows = [{"id": f"row{i}", "pass": 0, "verdict": verdict} for i, verdict in enumerate(verdicts)]
    judged(tmp_path / "b.judge-pairwise-m-a.jsonl", "pairwise", files[::-1], rows)
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    judge = of(data, "judge direct")
    assert [score[0] for score in judge["scores"]] == [30.0, 50.0]
    assert judge["items"] == [[10.0, 20.0, None, 60.0], [30.0, 20.0, 100.0, None]]
    assert judge["differences"]["0-1"][0] == 10.0  # over the two items that both have
    second = of(data, "judge direct #2")
    assert (second["scores"], second["items"][1], second["differences"]) == ([[7.0] * 4, None], [None] * 4, {})
    assert data["verdicts"] == [{"a": 1, "b": 0, "items": [[verdict] for verdict in verdicts]}]
    assert any("as it went" in note for note in data["notes"])


def test_rewards_are_compared_on_the_items_that_both_systems_have_scored(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [AFTER], metrics=["reward"]) for name in "ab"]
    for file, values in zip(files, ((1.0, 1.0, 0.2, 0.2), (1.0, 1.0, None, None)), strict=True):
        with_reward(file, values)
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    reward = of(data, "reward")
    assert [score[0] for score in reward["scores"]] == [0.6, 1.0]
    assert reward["differences"] == {"0-1": [0.0, 0.0, 0.0, 1.0]}
    assert (
        "reward: a is scored 4 of 4; b is scored 2 of 4; b and a are paired on 2 items scored in both" in data["notes"]
    )


def test_a_single_recording_has_no_interval_and_few_have_a_note(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [said]) for name, said in (("a", BEFORE), ("b", AFTER))]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    assert any(
        "The items are of 4 recordings. With fewer than 20, intervals are too narrow" in n for n in data["notes"]
    )
    for file in files:
        write_rows(file, [{**row, "utterance": "u"} for row in read_rows(file)])
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    assert of(data, "exact_match")["scores"] == [[25.0, None, None, 25.0], [50.0, None, None, 50.0]]
    assert of(data, "exact_match")["differences"] == {"0-1": [25.0, None, None, None]}
    assert any("All items are of one recording, so there is no interval and no p" in note for note in data["notes"])


def test_files_of_other_items_or_case_are_sets_of_their_own(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [AFTER]),
        write(tmp_path / "b.jsonl", [AFTER], lowercase=True),
        write(tmp_path / "c.jsonl", [["one"]], references=["one"]),
        write(tmp_path / "d.jsonl", [BEFORE]),
    ]
    data = drawn(predictions=files, audio=False).data
    assert [one["systems"] for one in data["sets"]] == [["a", "d"], ["b"], ["c"]]


def test_files_that_disagree_on_recordings_or_prompts_are_sets_of_their_own(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [AFTER]) for name in "abcd"]
    changes = [("utterance", None), ("utterance", "xxyz"), ("utterance", "xyyz"), ("prompt", "Who?")]
    for file, (key, values) in zip(files, changes, strict=True):
        rows = read_rows(file)
        write_rows(
            file, [{**row, key: values if key == "prompt" else values and values[i]} for i, row in enumerate(rows)]
        )
    data = drawn(predictions=files, audio=False).data["sets"]
    assert [one["systems"] for one in data] == [["a", "b"], ["c"], ["d"]]
    assert [note for note in data[0]["notes"] if "4 items of 3 recordings" in note]


def test_lengths_that_a_file_does_not_say_are_left_out(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [AFTER], metrics=["wer", "tokens"]) for name in ("a", "b")]
    write_rows(files[1], [{**row, "tokens": None} for row in read_rows(files[1])])
    (shown,) = drawn(predictions=files, audio=False).data["sets"]
    assert "tokens" not in [metric["name"] for metric in shown["metrics"]]
    assert any("tokens is left out: a does not say tokens" in note for note in shown["notes"])


def test_what_cannot_be_scored_is_left_out_and_said(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [AFTER], metrics=["wer", "comet"]),
        write(tmp_path / "b.jsonl", [["x"]], references=[" "], metrics=[]),
    ]
    scored, judged_only = drawn(predictions=files, audio=False).data["sets"]
    assert [metric["name"] for metric in scored["metrics"]] == ["wer"]
    assert "comet is left out, because a was not scored with it." in scored["notes"]
    assert judged_only["metrics"] == []
    assert any("no reference" in note for note in judged_only["notes"])


def test_which_files_are_shown(run, tmp_path):
    assert evaluation_section([]) is None
    other = tmp_path / "runs" / "other"
    other.mkdir()
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        evaluation_section([other])
    (other / "recipe.yaml").write_text("stage: rl\n")
    assert evaluation_section([other]) is None
    with pytest.raises(DataError, match="has no prediction files"):
        evaluation_section(predictions=[other])
    made_with = {"adapter": None, "split": "test"}
    write(other / "evaluation" / "tuned.jsonl", [AFTER], made_with={"adapter": {"name": "best"}})
    write(other / "evaluation" / "z-bare.jsonl", [BEFORE], made_with=made_with)
    # A file given twice is one; what was there before training comes first.
    section = drawn([run, other], [run / "test_after.jsonl"], audio=False)
    assert section.data["sets"][0]["systems"] == ["test_before", "test_after", "z-bare", "tuned"]
    assert section.data["audio"] is False


def test_systems_of_one_name_are_told_apart(tmp_path):
    files = [write(tmp_path / name / "evaluation" / "best.jsonl", [AFTER]) for name in "ab"]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    assert data["systems"] == ["a/evaluation/best", "b/evaluation/best"]


def test_a_long_file_is_cut_to_its_telling_items(tmp_path, monkeypatch):
    monkeypatch.setattr("leaf.report.evaluation.TEXT_BYTES", 450)
    files = [write(tmp_path / f"{name}.jsonl", [texts]) for name, texts in (("a", BEFORE), ("b", AFTER))]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    # Most improved (row3 goes from 0 to 100, as row0 does, which comes first), then most worsened (row1).
    assert [item["id"] for item in data["items"]] == ["row0", "row1"]
    assert data["total"] == 4
    assert of(data, "exact_match")["items"] == [[0.0, 100.0], [100.0, 0.0]]
    assert of(data, "exact_match")["scores"][1][0] == 50.0  # over all items

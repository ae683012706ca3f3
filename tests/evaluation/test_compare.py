import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.errors import ConfigError, DataError
from leaf.evaluation.compare import chosen_metrics, compare_files
from leaf.evaluation.predictions import JUDGED, Predictions, read_predictions
from leaf.evaluation.registry import paired_bootstrap, score
from leaf.files import read_rows, write_rows, write_text
from tests.helpers.evaluations import with_reward

REFERENCES = ["press one", "it is seven", "hello there", "two new messages"]
WORSE = [["press two", "it is seven", "hello", "two messages"], ["press one", "it was seven", "hello", "messages"]]
BETTER = [["press one", "it is seven", "hello there", "two messages"], REFERENCES]
GROUPS = ["a", "a", "b", "c"]
DECODING = {"greedy": False, "temperature": 0.9, "top_p": 0.9}


def write(path, system, passes, *, order=(0, 1, 2, 3), references=REFERENCES, decoding=DECODING, **meta):
    items = [{"id": str(i), "utterance": GROUPS[i], "prompt": "?", "reference": references[i]} for i in order]
    texts = [[one[i] for i in order] for one in passes]
    made = Predictions(
        system, items, texts, [42 + i for i in range(len(passes))], [[False] * len(order) for _ in passes]
    )
    made.meta = {"predictions": 1, "made_with": {"decoding": decoding}, "lowercase": False, **meta}
    made.write(path)
    return path


@pytest.fixture
def pair(tmp_path):
    return [
        write(tmp_path / "one.jsonl", "one", WORSE),
        write(tmp_path / "two.jsonl", "two", BETTER, order=(3, 1, 0, 2)),
    ]


def cells(shown, metric, system):
    """Return a line's cells from the table as text."""
    name = ""
    for line in shown.splitlines():
        parts = re.split(r"\s{2,}", line.strip())
        name = parts[0] if not line.startswith(" ") else name
        parts = parts if not line.startswith(" ") else ["", *parts]
        if name == metric and parts[1] == system:
            return parts
    raise AssertionError(shown)


def test_values_and_differences_are_those_of_the_metrics(pair):
    shown = compare_files(pair, metrics=["chrf", "wer"])
    for name in ("chrf", "wer"):
        each = [[score(texts, REFERENCES, [name])[name].value for texts in passes] for passes in (WORSE, BETTER)]
        means = [sum(values) / 2 for values in each]
        for system, values, mean in zip(("one", "two"), each, means, strict=True):
            line = cells(shown, name, system)
            assert line[2] == f"{mean:.2f}"
            assert line[4] == f"{min(values):.2f} to {max(values):.2f}"
        assert cells(shown, name, "two")[5] == f"{means[1] - means[0]:+.2f}"
    assert "4 items of 3 recordings; 2 passes, sampled at T 0.9, top-p 0.9, seeds 42, 43" in shown
    assert "wer: wer|punctuation:yes|case:mixed|jiwer" in shown
    assert "less is better" in shown


def test_one_pass_is_the_paired_bootstrap(tmp_path):
    one, two = WORSE[:1], BETTER[:1]
    files = [write(tmp_path / f"{name}.jsonl", name, passes) for name, passes in (("one", one), ("two", two))]
    shown = compare_files(files, metrics=["bleu"], samples=500)
    difference, low, high, p = paired_bootstrap(one[0], two[0], REFERENCES, "bleu", groups=GROUPS, samples=500)
    assert cells(shown, "bleu", "two")[-3:] == [f"{difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.3f}"]


def test_rewards_are_compared_on_the_items_that_both_systems_have_scored(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", name, WORSE[:1]) for name in ("all", "some")]
    for file, values in zip(files, ((1.0, 1.0, 0.2, 0.2), (1.0, 0.8, None, None)), strict=True):
        with_reward(file, values)
    shown = compare_files(files)
    assert [cells(shown, "reward", name)[2] for name in ("all", "some")] == ["0.6000", "0.9000"]
    # Items 0 and 1: (1 - 1 + 0.8 - 1) / 2, where 0.9 - 0.6 would be an advantage.
    assert cells(shown, "reward", "some")[4] == "-0.1000"
    assert "reward: all is scored 4 of 4; some is scored 2 of 4; some and all are paired on 2 items scored" in shown


def test_a_single_recording_has_no_interval_and_few_have_a_note(pair):
    line = "The items are of 3 recordings. With fewer than 20, intervals are too narrow and p is too small"
    assert line in compare_files(pair, metrics=["exact_match"])
    for file in pair:
        write_rows(file, [{**row, "utterance": "u"} for row in read_rows(file)])
    shown = compare_files(pair, metrics=["exact_match"])
    # Worse: 1 of 4 in both passes; better: 3 and 4 of 4.
    assert cells(shown, "exact_match", "two")[2:] == ["87.50", "–", "75.00 to 100.00", "+62.50", "–", "–"]
    assert "4 items of 1 recording; " in shown
    assert "All items are of one recording, so there is no interval and no p" in shown


def test_files_of_other_items_are_refused_by_name(pair, tmp_path):
    fewer = write(tmp_path / "fewer.jsonl", "fewer", WORSE, order=(0, 1, 2))
    other = write(tmp_path / "other.jsonl", "other", WORSE, references=["press one", "it is eight", *REFERENCES[2:]])
    message = r"against one, fewer: items differ: 1 only in one \('3'\); other: references differ for 1 items \('1'\)"
    with pytest.raises(DataError, match=message):
        compare_files([*pair, fewer, other])
    with pytest.raises(DataError, match="nothing to compare"):
        compare_files([])
    with pytest.raises(DataError, match="give each file once"):
        compare_files([pair[0], pair[0]])


def changed(file, change):
    write_rows(file, [change(row) for row in read_rows(file)])
    return file


def without(row, *names):
    return {key: value for key, value in row.items() if key not in names}


def test_recordings_come_from_whichever_file_names_them(pair):
    theirs = changed(pair[0], lambda row: without(row, "utterance"))
    for files in (pair, pair[::-1]):
        assert "4 items of 3 recordings" in compare_files(files, metrics=["exact_match"])
    # What a recording is called says nothing, but who shares one does.
    changed(theirs, lambda row: {**row, "utterance": f"other/{GROUPS[int(row['id'])]}"})
    assert "4 items of 3 recordings" in compare_files(pair, metrics=["exact_match"])
    changed(theirs, lambda row: {**row, "utterance": "abbc"[int(row["id"])]})
    with pytest.raises(DataError, match=r"two: recordings differ for 2 items \('1', '2'\): one and two disagree"):
        compare_files(pair)


def test_recordings_of_an_older_file_may_be_stretches_of_those_of_a_newer(pair):
    for file, groups in zip(pair, ("aabc", "aabb"), strict=True):
        changed(file, lambda row, groups=groups: {**row, "utterance": groups[int(row["id"])]})
    for files in (pair, pair[::-1]):
        assert "4 items of 2 recordings" in compare_files(files, metrics=["exact_match"])


def test_recordings_in_another_order_are_no_other_rows(tmp_path):
    files = {}
    for name, items, recordings in (("one", "s1", "r1"), ("sorted", "s2", "r2"), ("other", "s1", "r2")):
        made_with = {"decoding": DECODING, "items": {"sha256": items, "recordings_sha256": recordings}}
        files[name] = write(tmp_path / f"{name}.jsonl", name, WORSE, made_with=made_with)
    assert "FROM DIFFERENT ROWS" not in compare_files([files["one"], files["sorted"]])
    assert "FROM DIFFERENT ROWS: recordings (one: r1, other: r2)" in compare_files([files["one"], files["other"]])


def test_files_of_other_prompts_are_refused(pair):
    changed(pair[1], lambda row: {**row, "prompt": "Who?"} if row["id"] == "2" else row)
    with pytest.raises(DataError, match=r"two: prompts differ for 1 items \('2'\)"):
        compare_files(pair)
    changed(pair[1], lambda row: without(row, "prompt"))  # another program's
    assert "4 items" in compare_files(pair)


def test_all_that_differs_in_decoding_and_rows_is_named(tmp_path):
    made: dict[str, Any] = {
        "task": "a.jsonl",
        "split": "test",
        "items": {"count": 4, "recordings_sha256": "0123456789"},
    }
    base = {"greedy": True, "temperature": 0.9, "max_new_tokens": 20, "batch_size": 16, "dtype": "float32"}

    def shown(made_with=None, **decoding):
        other = {**made, **(made_with or {}), "decoding": {**base, **decoding}}
        files = [
            write(tmp_path / f"{name}.jsonl", name, WORSE[:1], made_with=one)
            for name, one in (("x", {**made, "decoding": base}), ("y", other))
        ]
        return compare_files(files, metrics=["exact_match"])

    assert "DIFFERENT" not in shown(temperature=0.1)  # without use in greedy decoding
    for key, value in (("max_new_tokens", 200), ("batch_size", 64), ("dtype", "bfloat16"), ("sampler", "vllm")):
        was = base.get(key, "local")
        assert (
            f"DECODED DIFFERENTLY: x: 1 pass, greedy; y: 1 pass, greedy; they differ in {key} (x: {was}, y: {value})"
            in (shown(**{key: value}))
        )
    assert "they differ in greedy (x: True, y: False)" in shown(greedy=False, top_p=0.9)
    different = {"task": "b.jsonl", "items": {"recordings_sha256": "abcdefghij"}}
    assert "FROM DIFFERENT ROWS: task (x: a.jsonl, y: b.jsonl), recordings (x: 01234567, y: abcdefgh)" in shown(
        different
    )


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    files = [tmp_path / folder / "best.jsonl" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        write(file, "best", WORSE)
    shown = compare_files(files, metrics=["bleu"])
    assert "a/best" in shown
    assert "b/best" in shown


def test_formats(pair):
    markdown = compare_files(pair, metrics=["exact_match"], format="markdown")
    assert markdown.startswith("| metric      | system   |   value | 95 % interval")
    assert "\n- exact_match: exact_match|punctuation:no" in markdown
    latex = compare_files(pair, metrics=["exact_match"], format="latex")
    assert latex.startswith("\\begin{tabular}{llrllrlr}\n\\toprule")
    assert "exact\\_match" in latex
    assert "95 \\% interval" in latex
    assert all(line.startswith("% ") for line in latex.split("\\end{tabular}\n")[1].splitlines())
    with pytest.raises(ConfigError, match=r"allowed are text, markdown, latex\. Did you mean 'markdown'"):
        compare_files(pair, format="markdwn")


def test_the_table_fits_a_terminal_of_eighty_columns(pair):
    metrics = ["bleu", "exact_match", "chrf"]
    wide, narrow = (compare_files(pair, metrics=metrics, width=width) for width in (None, 80))
    table = narrow.split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 80 < max(map(len, wide.split("\n\n")[0].splitlines()))
    ruled = re.compile("-+")
    assert sorted(ruled.sub("", table).replace("diff.", "difference").split()) == sorted(
        ruled.sub("", wide.split("\n\n")[0]).split()
    )
    assert compare_files(pair, metrics=metrics, width=200) == wide


def test_the_column_over_passes_is_there_for_several(tmp_path, pair):
    assert "over passes" in compare_files(pair).split("\n\n")[0]
    one = write(tmp_path / "one.jsonl", "one", WORSE[:1])
    assert "over passes" not in compare_files([one]).split("\n\n")[0]


def test_metrics_and_case_come_from_the_files(tmp_path, pair):
    scored = {"metrics": {"wer": {}, "cer": {}}, "lowercase": True}
    files = [write(tmp_path / f"{name}.jsonl", name, WORSE, **scored) for name in ("x", "y")]
    shown = compare_files(files)
    assert "wer|punctuation:yes|case:lc" in shown
    assert "bleu" not in shown
    with pytest.raises(ConfigError, match="--lowercase or --no-lowercase"):
        compare_files([files[0], pair[0]])
    assert "case:mixed" in compare_files([files[0], pair[0]], metrics=["wer"], lowercase=False)
    assert chosen_metrics(["bleu, wer", "chrf", "wer"], ["meteor=/x=y"]) == (
        ("bleu", "wer", "chrf"),
        {"meteor": "/x=y"},
    )
    assert chosen_metrics(["none"], None) == ((), {})
    assert chosen_metrics(None, None) == (None, {})
    with pytest.raises(ConfigError, match="give METRIC=PATH"):
        chosen_metrics(["bleu"], ["meteor"])


def test_other_decoding_and_other_signatures_do_not_pass_unseen(tmp_path, pair):
    greedy = write(tmp_path / "greedy.jsonl", "greedy", WORSE[:1], decoding={"greedy": True})
    assert "DECODED DIFFERENTLY: one: 2 passes, sampled" in compare_files([pair[0], greedy])
    for file, signature in zip(pair, ("meteor|wordnet:3.0", "meteor|wordnet:3.1"), strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        write_text(file, "".join(json.dumps({**row, "statistics": {"meteor": [0.5, 1.0]}}) + "\n" for row in lines))
        meta = json.loads(file.with_suffix(".meta.json").read_text())
        meta["metrics"] = {"meteor": {"signature": signature}}
        file.with_suffix(".meta.json").write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match=r"meteor was computed in different ways: .*3.0 and .*3.1"):
        compare_files(pair)
    with pytest.raises(ConfigError, match=r"in one way, with `--metric-path meteor"):
        compare_files(pair, metrics=["bleu", "meteor"])
    assert cells(compare_files(pair[:1]), "meteor", "one")[2] == "50.00"
    with pytest.raises(ConfigError, match="BERTScore needs a model"):
        compare_files(pair, metrics=["bertscore"])


def judged(path, kind, files, rows, judge="1", **summary):
    meta = {
        "judge": {"kind": kind, "sha256": judge, "signature": f"judge-{kind}|model:m"},
        "judged": [{"system": "x", "sha256": read_predictions(file).digest} for file in files],
        "passes": 1,
        "line": "as it went",
    }
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(path.with_suffix(".meta.json"), json.dumps(meta))


def test_what_only_some_files_have_is_left_out_unless_it_is_named(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", name, WORSE[:1]) for name in ("one", "two")]
    with_reward(files[0], (1.0, 1.0, 0.2, 0.2))
    meta = json.loads(files[0].with_suffix(".meta.json").read_text())
    meta["metrics"] |= {"bleu": {}}
    files[0].with_suffix(".meta.json").write_text(json.dumps(meta))
    shown = compare_files(files)
    assert cells(shown, "bleu", "two")[2] == cells(shown, "bleu", "one")[2]
    assert "reward is left out: two has no values of the reward reward" in shown
    with pytest.raises(DataError, match="two has no values of the reward reward"):
        compare_files(files, metrics=["bleu", "reward"])


def test_judges_stand_in_the_table(pair, tmp_path):
    for name, scores in (("one", (10, 20, None, 60)), ("two", (30, 20, 100, None))):
        rows = [{"id": str(i), "pass": 0, "score": score} for i, score in enumerate(scores)]
        judged(tmp_path / f"{name}.judge-direct-m.jsonl", "direct", [tmp_path / f"{name}.jsonl"], rows)
    shown = compare_files(pair, metrics=["bleu"])
    assert cells(shown, "judge direct", "one")[2] == "30.00"
    assert cells(shown, "judge direct", "two")[2] == "50.00"
    assert cells(shown, "judge direct", "two")[-3] == "+10.00"  # over the two items that both have
    assert "two and one are paired on 2 items scored in both" in shown
    assert "judge direct: judge-direct|model:m" in shown


def test_pairwise_counts_agreeing_verdicts(pair, tmp_path):
    verdicts = ("win", "win", "tie", "inconsistent")
    rows = [{"id": str(i), "pass": 0, "verdict": verdict} for i, verdict in enumerate(verdicts)]
    judged(tmp_path / "two.judge-pairwise-m-one.jsonl", "pairwise", pair[::-1], rows)
    shown = compare_files(pair, metrics=["bleu"])
    # 2 wins and half a tie of 3; recordings: {win, win}, {tie}, {inconsistent}.
    assert "two wins 83.3 % of agreeing verdicts against one, ties half" in shown
    assert "judge pairwise, two against one: as it went" in shown


def test_judgements_of_other_predictions(pair, tmp_path):
    rows = [{"id": "0", "pass": 0, "score": 5}]
    file = tmp_path / "one.judge-direct-m.jsonl"
    judged(file, "direct", pair[:1], rows)
    write(pair[0], "one", BETTER)  # evaluated again since
    shown = compare_files(pair, metrics=["bleu"])
    assert "judge direct" not in shown
    assert "not used, because they judge systems that are not compared here: 'one.judge-direct-m.jsonl'" in shown
    with pytest.raises(DataError, match="judges other predictions"):
        compare_files(pair, metrics=["bleu"], judged=[file])
    with pytest.raises(DataError, match="was not written by `leaf judge`"):
        compare_files(pair, metrics=["bleu"], judged=[pair[0]])


def test_verdicts_outlast_further_passes_and_statistics_and_no_more(pair, tmp_path):
    rows = [{"id": str(i), "pass": 0, "score": 10 * i} for i in range(4)]
    judged(tmp_path / "one.judge-direct-m.jsonl", "direct", pair[:1], rows)
    meta = tmp_path / "one.judge-direct-m.meta.json"
    digest = read_predictions(pair[0]).answers_digest(1)
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "judged": [{"system": "one", "sha256": digest}]}))
    for passes, order in ((WORSE, (0, 1, 2, 3)), ([*WORSE, REFERENCES], (0, 1, 2, 3)), (WORSE, (2, 0, 1, 3))):
        write(pair[0], "one", passes, order=order)
        assert cells(compare_files(pair, metrics=["bleu"]), "judge direct", "one")[2] == "15.00"
    # A system that says the same is told apart by its name.
    alike = write(tmp_path / "alike.jsonl", "alike", WORSE)
    shown = compare_files([alike, pair[0]], metrics=["bleu"])
    assert cells(shown, "judge direct", "one")[2] == "15.00"
    assert "judge direct, one: as it went" in shown
    write(pair[0], "one", BETTER)
    shown = compare_files(pair, metrics=["bleu"])
    assert "judge direct" not in shown
    assert "one.judge-direct-m.jsonl is not used: the predictions have changed since, or the prompts" in shown


def direct(file, passes, *, read=JUDGED, name="m"):
    """Judge the first passes of a prediction file; `passes` has the score of all items in each."""
    rows = [{"id": str(i), "pass": number, "score": score} for number, score in enumerate(passes) for i in range(4)]
    out = file.with_suffix(f".judge-direct-{name}.jsonl")
    judged(out, "direct", [file], rows)
    meta = json.loads(out.with_suffix(".meta.json").read_text())
    one = read_predictions(file)
    party = {"system": one.system, "sha256": one.answers_digest(len(passes), read)}
    out.with_suffix(".meta.json").write_text(json.dumps(meta | {"judged": [party], "passes": len(passes)}))
    return out


def test_verdicts_on_other_prompts_are_not_used(pair):
    direct(pair[0], [80])
    for column in ("prompt", "text"):
        changed(pair[0], lambda row, column=column: {**row, column: "another"})
        shown = compare_files(pair[:1], metrics=["exact_match"])
        assert "judge direct" not in shown
        assert "one.judge-direct-m.jsonl is not used: the predictions have changed since, or the prompts" in shown
        direct(pair[0], [80])
        assert cells(compare_files(pair[:1], metrics=["exact_match"]), "judge direct", "one")[2] == "80.00"


def test_verdicts_of_a_version_that_did_not_note_prompts_say_so(pair):
    file = direct(pair[0], [80], read=("reference",))
    shown = compare_files(pair[:1], metrics=["exact_match"])
    assert "judge direct" not in shown
    assert f"{file.name} is not used: an earlier version of leaf wrote it, and did not note which prompts" in shown
    with pytest.raises(DataError, match="cannot be used: an earlier version of leaf wrote it"):
        compare_files(pair[:1], metrics=["exact_match"], judged=[file])


def test_systems_are_compared_on_the_passes_that_were_judged_of_all(pair):
    direct(pair[0], [80])
    direct(pair[1], [80, 20])
    shown = compare_files(pair, metrics=["exact_match"])
    # 80 and 80 in the first pass; over both passes the second system has 50, and seemed 30 worse.
    assert cells(shown, "judge direct", "two")[2] == "80.00"
    assert cells(shown, "judge direct", "two")[4] == "+0.00"
    assert "different numbers of passes (one in 1, two in 2); the first 1 count" in shown


def test_copies_of_one_baseline_in_two_folders_have_each_its_own_judge(tmp_path):
    files = []
    for number, run in enumerate(("x", "y")):
        (tmp_path / run).mkdir()
        files.append(write(tmp_path / run / "base.jsonl", "base", WORSE))
        direct(files[-1], [80 - 20 * number])
    shown = compare_files(files, metrics=["exact_match"])
    assert [cells(shown, "judge direct", f"{run}/base")[2] for run in ("x", "y")] == ["80.00", "60.00"]


def test_two_files_of_one_judge_for_one_system_are_refused(pair):
    first = direct(pair[0], [80])
    assert "judge direct" in compare_files(pair[:1], metrics=["exact_match"], judged=[first])  # the same file twice
    direct(pair[0], [80, 0], name="again")
    with pytest.raises(DataError, match=r"judge-direct-again\.jsonl and .*judge-direct-m\.jsonl are both of one judge"):
        compare_files(pair[:1], metrics=["exact_match"])


def test_the_command(pair, tmp_path):
    result = CliRunner().invoke(app, ["compare", str(tmp_path), "--metrics", "bleu", "--format", "markdown"])
    assert result.exit_code == 0, result.output
    assert "| bleu" in result.output

"""Judges: every kind scores items, judges a file, and is a reward; a real server once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leaf.errors import ConfigError, DataError, JudgeError
from leaf.evaluation.judge_file import judge_file
from leaf.evaluation.predictions import Predictions, read_meta, read_predictions
from leaf.files import read_rows, write_rows
from leaf.http import Endpoint
from leaf.rewards.endpoint import Client
from leaf.rewards.judge import JudgeSettings, Tally, compare_items, score_items
from leaf.rewards.total import Rewards
from tests.helpers.judging import endpoint, item, seen


def test_direct_takes_the_median_of_what_was_readable(url, template):
    how, tally = JudgeSettings.of("direct", template=template), Tally()
    answers = ["".join(f"says={v};" for v in (10, 90, 20, "none", 80)), "says=no idea;"]
    with Client(endpoint(url)) as client:
        first, second = score_items(client, how, [item(answer) for answer in answers], tally)
    assert first["samples"] == [10.0, 90.0, 20.0, None, 80.0]
    assert first["score"] == 50.0  # of 10, 20, 80, 90
    assert second["score"] is None
    assert (tally.replies, tally.unreadable) == (10, 6)
    assert tally.line() == "6 of 10 replies (60.0 %) could not be read"
    assert {one["temperature"] for one in seen(url)["bodies"]} == {1.0}


def test_samples_without_a_seed_are_asked_for_one_by_one(url, template, tmp_path):
    how = JudgeSettings.of("direct", template=template, extra='{"seed": null}')
    with Client(endpoint(url), tmp_path / "c.sqlite") as client:
        score_items(client, how, [item("says=10;"), item("says=20;"), item("says=10;")], Tally())
    assert seen(url)["requests"] == 10  # five for each answer; the third item is the first again
    with Client(endpoint(url), tmp_path / "c.sqlite") as client:
        score_items(client, how, [item("says=10;")], Tally())
        assert client.cached == 5
    assert seen(url)["requests"] == 10
    assert all("seed" not in one for one in seen(url)["bodies"])


def test_rubric_is_an_expectation_where_log_probabilities_come(url, template):
    how, tally = JudgeSettings.of("rubric", template=template), Tally()
    with Client(endpoint(url)) as client:
        results = score_items(client, how, [item("says=4;"), item("says=4; nologprobs"), item("says=9;")], tally)
    assert results[0]["score"] == pytest.approx((4 * 0.6 + 1 * 0.3) / 0.9)
    assert [one["score"] for one in results[1:]] == [4.0, None]
    assert (tally.from_logprobs, tally.unreadable) == (1, 1)


def test_pairwise_counts_only_verdicts_that_hold_in_both_orders(url, tmp_path):
    file = tmp_path / "pair.txt"
    # Which side stands first decides what the server says: {answer_a} comes before {answer_b}, seed 0 takes the first.
    file.write_text("{answer_a}|{answer_b}")
    how, tally = JudgeSettings.of("pairwise", template=file), Tally()
    pairs = {
        "win": ("says=A;", "says=B;"),  # first order says A, swapped B: the same answer twice
        "loss": ("says=B;", "says=A;"),
        "tie": ("says=tie;", "says=tie;"),
        "inconsistent": ("says=A;", "says=A; "),  # always the first
        "failed": ("says=A;", "says=perhaps;"),
    }
    items = [item("", answer_a=a, answer_b=b) for a, b in pairs.values()]
    with Client(endpoint(url)) as client:
        results = compare_items(client, how, items, tally)
    assert [one["verdict"] for one in results] == list(pairs)
    assert (tally.replies, tally.unreadable) == (10, 1)


def predictions(path, system, answers, **columns):
    items = [
        {"id": str(i), "utterance": str(i), "prompt": "q", "text": "p", "reference": "r", **columns}
        for i in range(len(answers[0]))
    ]
    made = Predictions(system, items, answers, [None] * len(answers), [[False] * len(items) for _ in answers])
    made.meta["predictions"] = 1
    made.write(path)
    return path


def test_a_file_is_judged_continues_after_a_failure_and_says_what_it_did(url, tmp_path, template):
    how = JudgeSettings.of("direct", template=template, samples=1)
    answers = ["says=50;", "says=100;", "fault=dead; says=0;"]
    file = predictions(tmp_path / "a.jsonl", "a", [answers, ["says=1;"] * 3])
    with pytest.raises(JudgeError, match="continues from there"):
        judge_file(file, endpoint(url, retries=0, concurrency=1), how)
    answers[2] = "says=none;"
    predictions(file, "a", [answers, ["says=1;"] * 3])
    asked = seen(url)["requests"]
    shown = judge_file(file, endpoint(url), how)
    assert "a: mean 75.00 over 2 of 3 answers; 1 of 3 replies (33.3 %) could not be read" in shown
    assert "2 of 3 replies came from the cache" in shown
    assert seen(url)["requests"] == asked + 1
    out = tmp_path / "a.judge-direct-m.jsonl"
    assert [(row["id"], row["pass"], row["score"]) for row in read_rows(out)] == [
        ("0", 0, 50.0),
        ("1", 0, 100.0),
        ("2", 0, None),
    ]
    meta = read_meta(out)
    assert meta["judged"] == [{"system": "a", "sha256": read_predictions(file).answers_digest(1)}]
    counts = {"replies": 3, "unreadable": 1, "scored": 2, "mean": 75.0, "from_logprobs": 0}
    assert meta["summary"] == counts | {"quartiles": [62.5, 75.0, 87.5]}
    assert meta["judge"]["signature"].startswith("judge-direct|model:m|samples:1|T:0|template:")
    everything = out.read_text() + json.dumps(meta)
    assert str(tmp_path) not in everything
    assert "127.0.0.1" not in everything
    with pytest.raises(ConfigError, match="passes is 3; a has 2"):
        judge_file(file, endpoint(url), how, passes=3)


def test_files_that_cannot_be_judged(url, tmp_path):
    a = predictions(tmp_path / "a.jsonl", "a", [["x", "y"]])
    with pytest.raises(ConfigError, match="needs two prediction files"):
        judge_file(a, endpoint(url), JudgeSettings.of("pairwise"))
    with pytest.raises(ConfigError, match="other kinds need one"):
        judge_file(a, endpoint(url), JudgeSettings.of("direct"), against=a)
    b = predictions(tmp_path / "b.jsonl", "b", [["x", "y", "z"]])
    with pytest.raises(DataError, match="1 only in b \\('2'\\)"):
        judge_file(a, endpoint(url), JudgeSettings.of("pairwise"), against=b)
    silent = predictions(tmp_path / "c.jsonl", "c", [["x"]], text="")
    (tmp_path / "shows.txt").write_text("{passage} {answer}")
    with pytest.raises(DataError, match="1 of 1 rows have no `text`"):
        judge_file(silent, endpoint(url), JudgeSettings.of("direct", template=tmp_path / "shows.txt"))
    half = predictions(tmp_path / "d.jsonl", "d", [["x", "y"]])
    rows = read_rows(half)
    write_rows(half, [{**rows[0], "text": ""}, rows[1]])
    with pytest.raises(DataError, match="1 of 2 rows have no `text`"):
        judge_file(half, endpoint(url), JudgeSettings.of("direct"))
    assert seen(url)["requests"] == 0


def test_rows_without_references_get_a_prompt_without_them(url, tmp_path):
    file = predictions(tmp_path / "a.jsonl", "a", [["x"]], reference="")
    judge_file(file, endpoint(url), JudgeSettings.of("direct", samples=1))
    assert "reference" not in seen(url)["bodies"][0]["messages"][0]["content"]


def test_the_judge_is_a_reward(url, template, tmp_path):
    options = {"url": url, "model": "m", "template": str(template), "samples": 1, "cache": str(tmp_path / "c.sqlite")}
    rewards = Rewards(["judge", "exact_match"], weights=[1.0, 0.0], options={"judge": options})
    given = {"prompts": ["q", [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "q"}]}], "q"]}
    columns = {**given, "reference": ["r"] * 3, "text": ["p"] * 3}
    result = rewards(completions=["says=40;", "says=100;", "says=hm;"], **columns)
    assert result.parts["judge"].tolist()[:2] == [0.4, 1.0]
    assert result.parts["judge"].tolist()[2] != result.parts["judge"].tolist()[2]  # NaN: it could not be read
    messages = [[{"role": "assistant", "content": text}] for text in ("says=40;", "says=100;", "says=hm;")]
    assert rewards(completions=messages, **columns).parts["judge"].tolist()[:2] == [0.4, 1.0]
    rubric = Rewards(["judge"], options={"judge": {**options, "kind": "rubric"}})
    said = rubric(completions=["says=5; nologprobs", "says=1; nologprobs", "says=2; nologprobs"], **columns)
    assert said.totals.tolist() == [1.0, 0.0, 0.25]
    for bad in ({}, {"url": url}, {"url": url, "model": "m", "kind": "pairwise"}, {"url": url, "model": "m", "odd": 1}):
        with pytest.raises(ConfigError):
            Rewards(["judge"], options={"judge": bad})
    with pytest.raises(ConfigError, match="none of the rewards"):
        Rewards(["bleu"], options={"judge": options})


def test_options_reach_any_reward_function(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def fixed(completions, value=0, **_):\n    return [value] * len(completions)\n")
    name = f"{file}:fixed"
    assert Rewards([name], options={name: {"value": 2}})(completions=["a"]).totals.tolist() == [2.0]


# -- a real server -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_smollm2_behind_transformers_serve(tmp_path):
    """The small language model of the demo judges; it is a weak judge, so only the plumbing is looked at."""
    pytest.importorskip("fastapi", reason='transformers serve needs pip install "transformers[serving]"')
    import socket
    import time

    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from leaf.model.demo import _language_model, _text_config, _tokenizer

    quantised, original = _language_model("packages")
    tokenizer = _tokenizer(original)
    tokenizer.chat_template = original.chat_template
    known = _text_config(quantised, tokenizer)
    config = {key: value for key, value in known.items() if key not in ("dtype", "architectures", "model_type")}
    model: Any = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "smol")
    tokenizer.save_pretrained(tmp_path / "smol")
    template = tmp_path / "t.txt"
    template.write_text("Question: {question}\nAnswer: {answer}\nRate it from 0 to 100. Reply with the number alone.")
    file = predictions(tmp_path / "a.jsonl", "a", [["press one", "it is seven"]])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tmp_path / "smol")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment) as server:
        try:
            for _ in range(120):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(1)
            at = Endpoint(f"http://127.0.0.1:{port}/v1", str(tmp_path / "smol"), concurrency=2)
            how = JudgeSettings.of("direct", template=template, samples=2, max_tokens=6)
            shown = judge_file(file, at, how, out=tmp_path / "out.jsonl")
            rows = read_rows(tmp_path / "out.jsonl")
            assert len(rows) == 2
            assert all(len(row["replies"]) == 2 and all(row["replies"]) for row in rows)
            assert "of 4 replies" in shown
            rubric = JudgeSettings.of("rubric", template=template, max_tokens=4)  # the server ignores log-probs
            judge_file(file, at, rubric, out=tmp_path / "rubric.jsonl")
            assert read_meta(tmp_path / "rubric.jsonl")["summary"]["from_logprobs"] == 0
        finally:
            server.terminate()

import asyncio
import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.errors import ConfigError, DataError, JudgeError
from leaf.evaluation.judge_file import judge_file
from leaf.evaluation.predictions import Predictions, read_meta, read_predictions
from leaf.files import read_rows, write_rows
from leaf.http import Endpoint
from leaf.rewards.endpoint import Client, Reply, request_key
from leaf.rewards.judge import JudgeSettings, Tally, compare_items, expected_score, parse, score_items
from leaf.rewards.total import Rewards

SERVER = Path(__file__).parents[1] / "helpers" / "judge_server.py"


@pytest.fixture
def url():
    """The address of a fresh server process."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def seen(url):
    return httpx2.get(url).json()


def endpoint(url, **options):
    return Endpoint(url, "m", **{"wait_s": 0.01, "concurrency": 4, "retries": 3, **options})


def body(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def item(answer, **more):
    return {"passage": "p", "question": "q", "reference": "r", "answer": answer, **more}


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "template.txt"
    file.write_text("{answer}")
    return file


# -- the endpoint ------------------------------------------------------------------------------------------------------
def test_faults_are_retried_and_order_is_kept(url):
    texts = [f"fault={name}; says={i};" for i, name in enumerate(("busy", "broken", "garbled", "cut", "none"))]
    with Client(endpoint(url)) as client:
        assert [reply.text for reply in client.complete([body(text) for text in texts])] == ["0", "1", "2", "3", "4"]
    assert seen(url)["requests"] == 3 + 2 + 2 + 2 + 1


def test_a_slow_answer_is_given_up_and_asked_again(url):
    with Client(endpoint(url, timeout_s=0.4)) as client:
        assert client.complete([body("fault=slow; says=7;")])[0].text == "7"
    assert seen(url)["requests"] == 2


def test_a_request_that_fails_in_all_tries_is_an_error_and_the_other_replies_are_kept(url, tmp_path):
    bodies = [body(f"says={i};") for i in range(6)]
    with Client(endpoint(url, concurrency=1), tmp_path / "c.sqlite") as client:
        with pytest.raises(JudgeError, match="no usable answer in 4 tries; last: status 503"):
            client.complete([*bodies, body("fault=dead;")])
        with pytest.raises(JudgeError, match="is not a chat completion"):
            client.complete([body("fault=empty;")])
    asked = seen(url)["requests"]
    with Client(endpoint(url), tmp_path / "c.sqlite") as client:
        assert [reply.text for reply in client.complete(bodies)] == list("012345")
        assert client.cached == 6
    assert seen(url)["requests"] == asked
    with (
        Client(endpoint("http://127.0.0.1:9/v1", retries=1)) as client,
        pytest.raises(JudgeError, match="in 2 tries; last: ConnectError"),
    ):
        client.complete([body("x")])


def test_a_refusal_stops_at_once_and_never_shows_the_key(url, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with Client(endpoint(url, key_env="JUDGE_KEY"), tmp_path / "c.sqlite") as client:
        with pytest.raises(JudgeError, match=r"status 401.*bad key Bearer \*\*\*") as refused:
            client.complete([body("fault=refused;")])
        client.complete([body("says=1;")])
    assert "secret" not in str(refused.value)
    asked = seen(url)
    assert asked["requests"] == 2
    assert asked["keys"] == ["Bearer sk-very-secret"] * 2
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"JUDGE_KEY .* is not set"):
        Client(endpoint(url, key_env="JUDGE_KEY"))


KEY = "sk-very/secret+key"


@pytest.mark.parametrize("status", [401, 503, 200])
@pytest.mark.parametrize("pad", [0, 170, 270])
def test_no_part_of_a_key_that_a_server_repeats_is_shown(url, monkeypatch, status, pad):
    """The message is cut after some hundred characters; a key across that border must be masked, too."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Client(endpoint(url, key_env="JUDGE_KEY", retries=0)) as client, pytest.raises(JudgeError) as refused:
        client.complete([body(f"fault=echo; status={status}; pad={pad};")])
    assert "sk-" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_key_in_a_reply_reaches_no_file(url, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Client(endpoint(url, key_env="JUDGE_KEY"), tmp_path / "c.sqlite") as client:
        assert client.complete([body("fault=told;")])[0].text == "Score: 70\nBearer ***"
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
    monkeypatch.setenv("JUDGE_KEY", "0")  # what a local server takes is no secret, and scores contain it
    with Client(endpoint(url, key_env="JUDGE_KEY")) as client:
        assert client.complete([body("says=Score: 70;")])[0].text == "Score: 70"


def test_a_key_from_a_file_is_stripped_and_what_no_header_can_carry_is_refused(url, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f"  {KEY}\r\n")
    with Client(endpoint(url, key_env="JUDGE_KEY")) as client:
        client.complete([body("says=1;")])
    assert seen(url)["keys"] == [f"Bearer {KEY}"]
    for bad in ("sk-one\r\nsecret", "sk-secret\x7f", "sk-sécret"):
        monkeypatch.setenv("JUDGE_KEY", bad)
        with pytest.raises(ConfigError, match=r"JUDGE_KEY .* no HTTP header can carry") as refused:
            Rewards(["judge"], options={"judge": {"url": url, "model": "m", "key_env": "JUDGE_KEY"}})
        assert "cret" not in str(refused.value)
    monkeypatch.setenv("JUDGE_KEY", " \n")
    with pytest.raises(ConfigError, match=r"JUDGE_KEY .* is not set"):
        endpoint(url, key_env="JUDGE_KEY").key()


def test_a_key_in_the_wrong_place_is_not_shown():
    for wrong in ("sk-very-secret", "very secret"):
        with pytest.raises(ConfigError, match="not the name of an environment variable") as refused:
            Endpoint("http://host/v1", "m", key_env=wrong)
        assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="is not set") as refused:  # such a key could be a variable's name
        Endpoint("http://host/v1", "m", key_env="hf_verySecret").key()
    assert "Secret" not in str(refused.value)
    for address in ("ftp://me:secret@host", "http://me:secret@host:port/v1", "http://host/v1?api_key=secret"):
        with pytest.raises(ConfigError, match="--key-env") as refused:
            Endpoint(address, "m")
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("fault", ["drips", "drips_headers"])
def test_the_time_limit_is_for_the_whole_reply(url, fault):
    began = time.perf_counter()
    with (
        Client(endpoint(url, timeout_s=0.4, retries=0)) as client,
        pytest.raises(JudgeError, match=r"no answer within 0\.4 s"),
    ):
        client.complete([body(f"fault={fault};")])
    assert time.perf_counter() - began < 3


def test_replies_without_an_end_or_a_meaning_are_one_error(url, monkeypatch):
    monkeypatch.setattr("leaf.http.LARGEST_ANSWER", 2**20)
    with Client(endpoint(url, retries=0)) as client:
        with pytest.raises(JudgeError, match="larger than 1 MiB"):
            client.complete([body("fault=endless;")])
        for fault in ("nested", "surrogate", "nan"):
            with pytest.raises(JudgeError, match="is not a chat completion"):
                client.complete([body(f"fault={fault};")])


def test_judges_work_where_an_event_loop_runs_already(url):
    async def in_a_notebook():
        with Client(endpoint(url)) as client:
            return client.complete([body("says=5;")])[0].text

    # In a thread of its own: the browser of the report's tests keeps a loop running in the main one.
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, in_a_notebook()).result() == "5"


def test_equal_requests_are_sent_once_and_several_at_a_time(url):
    with Client(endpoint(url, concurrency=4)) as client:
        replies = client.complete([body(f"says={i % 8};") for i in range(40)])
    assert [reply.text for reply in replies] == [str(i % 8) for i in range(40)]
    assert seen(url)["requests"] == 8
    assert 2 <= seen(url)["busiest"] <= 4


def test_a_cache_that_cannot_be_written_is_one_sentence_and_what_it_holds_stays(url, tmp_path):
    file = tmp_path / "c.sqlite"
    other = sqlite3.connect(file)
    with Client(endpoint(url), file) as client:
        client.complete([body("says=1;")])
        assert client._cache is not None
        client._cache._db.execute("PRAGMA busy_timeout = 10")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JudgeError, match=r"c.sqlite cannot be read or written: database is locked. .* continues"):
            client.complete([body("says=2;")])
        other.rollback()
        other.execute("CREATE TRIGGER full BEFORE INSERT ON replies BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(JudgeError, match="cannot be read or written: no room"):
            client.complete([body("says=3;")])
        other.execute("DROP TRIGGER full")
        assert client.complete([body("says=1;")])[0].text == "1"
        assert client.cached == 1
    other.close()


def test_addresses_and_numbers_that_do_not_fit():
    for bad in ("localhost:8000", "ftp://x/v1", "", 5, "http://"):
        with pytest.raises(ConfigError, match="The endpoint is"):
            Endpoint(bad, "m")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="user or password"):
        Endpoint("http://me:secret@host/v1", "m")
    options: list[dict[str, Any]] = [{"retries": 1.5}, {"concurrency": 2.0}]
    for option in options:
        with pytest.raises(ConfigError, match="give a whole number"):
            Endpoint("http://host/v1", "m", **option)
    with pytest.raises(ConfigError, match="concurrency 0"):
        Endpoint("http://host/v1", "m", concurrency=0)


def test_the_key_of_a_request_is_its_content():
    assert request_key({"a": 1, "b": [2]}) == request_key({"b": [2], "a": 1})
    assert request_key(body("x", seed=0)) != request_key(body("x", seed=1))
    assert (
        request_key(body("x")) == "fd58d28a54b86be0d2a61a98d34e2ff8a3ea5ce6234cefd6786cb0f5b0331499"
    )  # as caches of earlier versions have it
    assert request_key(body("x"), 1) != request_key(body("x"))


# -- parsing -----------------------------------------------------------------------------------------------------------
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


# -- judging -----------------------------------------------------------------------------------------------------------
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

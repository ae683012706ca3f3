"""The endpoint of a judge: what is retried, given up, cached and refused, and keys that nobody gets to see."""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leaf.errors import ConfigError, JudgeError
from leaf.http import Endpoint
from leaf.rewards.endpoint import Client, request_key
from leaf.rewards.total import Rewards
from tests.helpers.judging import endpoint, seen


def body(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


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

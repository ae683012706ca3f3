"""A client for OpenAI-compatible chat endpoints: it retries, caches replies by content and sends several at a time.

The API key comes from an environment variable that the user names. It goes into a header and nowhere else: what a
server sends is masked before it is read, cut or kept. A server is not trusted either: the time and the size of a reply
are bounded, whatever it sends.
"""

import asyncio
import json
import os
import random
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2 as httpx

from leaf.errors import ConfigError, JudgeError
from leaf.rewards.waiting import wait_for

_LARGEST_REPLY = 32 * 2**20  # bytes; 8,000 tokens with 20 log-probabilities each are about 16 MiB
_SHORTEST_SECRET = 8  # characters of a key; local servers take "EMPTY" or "0", which replies contain by themselves
_LONGEST_WAIT = 120.0  # seconds between two tries, whatever the server asks for
_SAY_EVERY = 200  # replies
_CREDENTIALS = "The endpoint's address contains a user or password; give a key by --key-env instead."
_RETRIED = (408, 409, 429)  # status codes below 500 that may pass


@dataclass(frozen=True)
class Endpoint:
    """Where an LLM judge answers, and how patiently it is asked.

    Attributes:
        url: the address up to the version, such as http://localhost:8000/v1.
        model: name of the model there.
        key_env: environment variable with the API key, None for no key.
        concurrency: requests at a time.
        timeout_s: seconds a reply may take, from the connection to its last byte.
        retries: tries after the first one, on status 408, 409, 429 or 5xx, time-outs, broken connections and replies
            that are no chat completion.
        wait_s: seconds before the first retry, give or take half; doubled for each further one. A server's Retry-After
            is respected.
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 6
    wait_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unusable address, credentials in it, and numbers out of range."""
        _check_address(self.url)
        for name, kind in (("concurrency", int), ("timeout_s", int | float), ("retries", int), ("wait_s", int | float)):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = "a whole number" if kind is int else "a number"
                raise ConfigError(f"{name} of the endpoint is {value!r}; give {wanted}.")
        if not isinstance(self.model, str) or not isinstance(self.key_env, str | None):
            raise ConfigError("The model of an endpoint and the variable with its key are names; give text.")
        if self.key_env is not None and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            # It may be the key itself, so it is not shown.
            raise ConfigError(
                "What was given as key_env (--key-env) is not the name of an environment variable. Put the API key "
                "into a variable, and give the variable's name, such as JUDGE_KEY."
            )
        if self.concurrency < 1 or not self.timeout_s > 0 or self.retries < 0:
            raise ConfigError(
                f"concurrency {self.concurrency}, timeout {self.timeout_s} and retries {self.retries}: allowed are "
                "1 or more, above 0, and 0 or more."
            )

    def key(self) -> str | None:
        """Read the API key from its variable, without the white space around it: a file ends with a line feed."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        # Some keys (hf_..., gsk_...) could be a variable's name, so only what looks like one is shown.
        name = f" {self.key_env}" if self.key_env.isupper() else ""
        if not key:
            raise ConfigError(f"The environment variable{name} (--key-env) is not set; put the API key there.")
        if not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"The API key in the environment variable{name} (--key-env) has characters that no HTTP header can "
                "carry, such as a line break or a letter that is not ASCII. Put the key alone there."
            )
        return key


@dataclass(frozen=True)
class Reply:
    """A reply: its text, and per token {token, logprob, top: [{token, logprob}]} if the server gave them."""

    text: str
    tokens: list[dict[str, Any]] | None = None


class Client:
    """Send requests to an endpoint; a context manager.

    Args:
        endpoint: the server.
        cache: SQLite file of replies by SHA-256 of the request, None for none. The address is no part of a request, so
            a server that gives the same name to another model needs a file of its own.
        say: takes lines about the progress.
    """

    def __init__(
        self, endpoint: Endpoint, cache: str | Path | None = None, *, say: Callable[[str], None] | None = None
    ):
        self.endpoint = endpoint
        self.cached = 0
        self.say = say
        self._key = endpoint.key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.AsyncClient(
            # Compressed, a small reply could unpack to any size.
            headers={**headers, "Accept-Encoding": "identity"},
            limits=httpx.Limits(max_keepalive_connections=endpoint.concurrency),
            timeout=None,  # `_post` bounds the whole request; this would bound each read alone
        )
        self._cache = Cache(Path(cache).expanduser()) if cache is not None else None
        self._stop = threading.Event()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait_for(self._http.aclose())
        if self._cache is not None:
            self._cache.close()

    def complete(self, bodies: Sequence[Mapping[str, Any]], numbers: Sequence[int] | None = None) -> list[Reply]:
        """Get the reply to each request body, in order; equal ones are sent once, cached ones not at all.

        Args:
            bodies: the requests.
            numbers: one for each; equal bodies with different numbers are all sent, such as samples without a seed.
                Default all 0.

        Raises:
            JudgeError: the endpoint refuses a request, one fails after all retries, or the cache cannot be read or
                written. Replies that came before are in the cache.
        """
        keys = [request_key(body, number) for body, number in zip(bodies, numbers or [0] * len(bodies), strict=True)]
        replies: dict[str, Reply] = self._cache.known(set(keys)) if self._cache is not None else {}
        self.cached += sum(key in replies for key in keys)
        wanted = {key: body for key, body in zip(keys, bodies, strict=True) if key not in replies}
        self._stop.clear()
        with ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="judge") as pool:
            futures = {pool.submit(self._ask, body): key for key, body in wanted.items()}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    replies[futures[future]] = self._cached_reply(futures[future], future.result())
                    if self.say is not None and done % _SAY_EVERY == 0:
                        self.say(f"{done} of {len(wanted)} replies")
            except BaseException:
                # Ctrl-C as well. End the waits for a retry and drop what was not sent; then cache the replies to what
                # was, since they are paid for.
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                for future, key in futures.items():
                    if key not in replies and not future.cancelled() and future.exception() is None:
                        self._cached_reply(key, future.result())
                raise
        return [replies[key] for key in keys]

    def _cached_reply(self, key: str, reply: Reply) -> Reply:
        """Add a reply to the cache, if there is one, and hand it on."""
        if self._cache is not None:
            self._cache.add(key, reply)
        return reply

    def _ask(self, body: Mapping[str, Any]) -> Reply:
        """Send one request until a usable reply comes."""
        url = self.endpoint.url.rstrip("/") + "/chat/completions"
        reason = ""
        for attempt in range(self.endpoint.retries + 1):
            wait = self.endpoint.wait_s * 2**attempt * random.uniform(0.5, 1.5)
            try:
                answer = wait_for(self._post(url, body))
            except TimeoutError:
                reason = f"no answer within {self.endpoint.timeout_s:g} s"
            except httpx.RequestError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                # Masked before it is cut: half a key would no longer be found.
                shown = self._without_key(answer.text or "")[:300]
                if answer.text is None:
                    reason = f"the answer is larger than {_LARGEST_REPLY >> 20} MiB"
                elif answer.status == 200:
                    reply = _read_reply(answer.text)
                    if reply is not None:
                        return self._as_kept(reply)
                    reason = f"the answer is not a chat completion: {shown}"
                elif answer.status in _RETRIED or answer.status >= 500:
                    reason = f"status {answer.status}: {shown}"
                    wait = max(wait, answer.retry_after)
                else:
                    raise JudgeError(f"The endpoint {url} refused a request with status {answer.status}: {shown}")
            # wait() returns True if another request has failed for good meanwhile.
            if attempt < self.endpoint.retries and self._stop.wait(min(wait, _LONGEST_WAIT)):
                break
        raise JudgeError(
            self._without_key(
                f"The endpoint {url} gave no usable answer in {self.endpoint.retries + 1} tries; last: {reason}. "
                "Replies that came before are in the cache, if there is one: the same command continues from there."
            )
        )

    async def _post(self, url: str, body: Mapping[str, Any]) -> "_Answer":
        """Send a request once, and read what comes up to the time and the size that are allowed.

        Raises:
            TimeoutError: the last byte was not there in time.
            httpx.RequestError: the connection failed.
        """
        async with (
            asyncio.timeout(self.endpoint.timeout_s),
            self._http.stream("POST", url, json=dict(body)) as response,
        ):
            retry_after = _seconds(response.headers.get("retry-after", "0"))
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > _LARGEST_REPLY:
                    return _Answer(response.status_code, retry_after, None)
            return _Answer(response.status_code, retry_after, data.decode("utf-8", "replace"))

    def _without_key(self, text: str) -> str:
        """Mask the API key, which some servers repeat: as it is, inside JSON, or inside an address."""
        if self._key is None:
            return text
        for written in (self._key, json.dumps(self._key)[1:-1], self._key.replace("/", r"\/"), quote(self._key, "")):
            text = text.replace(written, "***")
        return text

    def _as_kept(self, reply: Reply) -> Reply:
        """Mask the API key in a reply, which goes into files."""
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return reply
        tokens = reply.tokens and [
            {**self._masked(one), "top": [self._masked(other) for other in one["top"]]} for one in reply.tokens
        ]
        return Reply(self._without_key(reply.text), tokens)

    def _masked(self, one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "token": self._without_key(one["token"])}


@dataclass(frozen=True)
class _Answer:
    """What a server sent: status, seconds to wait before the next try, and the text, None if it was too large."""

    status: int
    retry_after: float
    text: str | None


class Cache:
    """Replies in a SQLite file. Each is written as soon as it came, so that an interruption loses none."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path)
            self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"The cache {path} cannot be opened: {error}. Name another file, or remove it."
            ) from error

    def known(self, keys: set[str]) -> dict[str, Reply]:
        """Read the replies that are there for these keys."""
        found = {}
        with self._explained():
            for key in keys:
                row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = Reply(**json.loads(row[0]))
        return found

    def add(self, key: str, reply: Reply) -> None:
        """Write one reply to the disk."""
        with self._explained(), self._db:
            text = json.dumps({"text": reply.text, "tokens": reply.tokens}, ensure_ascii=False)
            self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a failure of SQLite (a locked or damaged file, a full disk) into an error that says what helps."""
        try:
            yield
        except sqlite3.Error as error:
            raise JudgeError(
                f"The cache {self.path} cannot be read or written: {error}. Its replies are safe. End other programs "
                "that use it, or free some space; then the same command continues from there."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def request_key(body: Mapping[str, Any], number: int = 0) -> str:
    """Compute the SHA-256 of a request body in canonical JSON, and of its number among equal ones."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return sha256((f"{text} {number}" if number else text).encode()).hexdigest()


def _check_address(url: object) -> None:
    """Refuse what is no address of an endpoint, and credentials in it, without showing them."""
    try:
        parsed = httpx.URL(url)  # pyright: ignore[reportArgumentType]
    except (TypeError, httpx.InvalidURL) as error:
        if "@" in str(url):
            raise ConfigError(_CREDENTIALS) from None  # the error has the address, too
        raise ConfigError(f"The endpoint is {url!r}, which is not an address: {error}.") from error
    if parsed.userinfo:
        raise ConfigError(_CREDENTIALS)
    if parsed.query or parsed.fragment:
        # Some servers take the key there. It would be in every recipe and message, and it is not part of the path.
        raise ConfigError(
            "The endpoint's address has a query (`?`) or a fragment (`#`). Give the address up to the version, such as "
            "http://localhost:8000/v1, and a key by --key-env."
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"The endpoint is {url!r}; give an address such as http://localhost:8000/v1.")


def _read_reply(text: str) -> Reply | None:
    """Read text and log-probabilities of a chat completion; None if it is none."""
    try:
        choice = json.loads(text)["choices"][0]
        said = choice["message"]["content"]
        listed = (choice.get("logprobs") or {}).get("content")
        tokens = None
        if listed:
            tokens = [
                {**_token(one), "top": [_token(other) for other in one.get("top_logprobs") or []]} for one in listed
            ]
        if said is None:  # a reasoning model that spent all its tokens on thinking: an empty answer
            said = ""
        return Reply(_storable(said), tokens) if isinstance(said, str) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # the last: JSON nested too deeply
        return None


def _token(one: Mapping[str, Any]) -> dict[str, Any]:
    logprob = float(one["logprob"])
    if not logprob < 0.01:  # NaN, or the probability is above 1 by more than rounding
        raise ValueError
    return {"token": _storable(str(one["token"])), "logprob": logprob}


def _storable(text: str) -> str:
    """Hand on a text that can be written; half a surrogate pair, which JSON can name, is a ValueError."""
    text.encode()
    return text


def _seconds(text: str) -> float:
    """Read a Retry-After header; 0 if it is a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0

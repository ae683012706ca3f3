"""A client for OpenAI-compatible chat endpoints: it retries, caches replies by content and sends several at a time.

leaf.http has the connection, its patience and its bounds. Here the API key is masked in replies, too, which go into
files.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from leaf.errors import ConfigError, JudgeError
from leaf.http import Connection, Endpoint, NoAnswer, NotUsable, Refused

_SHORTEST_SECRET = 8  # characters of a key; local servers take "EMPTY" or "0", which replies contain by themselves
_SAY_EVERY = 200  # replies


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
        self._connection = Connection(endpoint)
        self._key = self._connection.key
        self._cache = Cache(Path(cache).expanduser()) if cache is not None else None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
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
        self._connection.stop.clear()
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
                self._connection.stop.set()
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
        try:
            return self._as_kept(self._connection.ask(url, body, _read_reply))
        except Refused as refused:
            raise JudgeError(f"The endpoint {url} refused a request with {refused}") from None
        except NoAnswer as last:
            raise JudgeError(
                self._connection.without_key(
                    f"The endpoint {url} gave no usable answer in {self.endpoint.retries + 1} tries; last: {last}. "
                    "Replies that came before are in the cache, if there is one: the same command continues from there."
                )
            ) from None

    def _as_kept(self, reply: Reply) -> Reply:
        """Mask the API key in a reply, which goes into files."""
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return reply
        tokens = reply.tokens and [
            {**self._masked(one), "top": [self._masked(other) for other in one["top"]]} for one in reply.tokens
        ]
        return Reply(self._connection.without_key(reply.text), tokens)

    def _masked(self, one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "token": self._connection.without_key(one["token"])}


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


def _read_reply(text: str) -> Reply:
    """Read text and log-probabilities of a chat completion."""
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
        if isinstance(said, str):
            return Reply(_storable(said), tokens)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # the last: JSON nested too deeply
        pass
    raise NotUsable("the answer is not a chat completion")


def _token(one: Mapping[str, Any]) -> dict[str, Any]:
    logprob = float(one["logprob"])
    if not logprob < 0.01:  # NaN, or the probability is above 1 by more than rounding
        raise ValueError
    return {"token": _storable(str(one["token"])), "logprob": logprob}


def _storable(text: str) -> str:
    """Hand on a text that can be written; half a surrogate pair, which JSON can name, is a ValueError."""
    text.encode()
    return text

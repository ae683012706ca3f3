"""Ask servers over HTTP, patiently but not for ever: the time and the size of an answer are bounded, whatever comes.

The API key comes from an environment variable that the user names. It goes into a header and nowhere else: what a
server sends is masked before it is read, cut or kept.
"""

import asyncio
import json
import os
import random
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2 as httpx

from leaf.errors import ConfigError
from leaf.waiting import wait_for

T = TypeVar("T")
LARGEST_ANSWER = 32 * 2**20  # bytes; 8,000 tokens with 20 log-probabilities each are about 16 MiB
_LONGEST_WAIT = 120.0  # seconds between two tries, whatever the server asks for
_CREDENTIALS = "The endpoint's address contains a user or password; give a key by --key-env instead."
_RETRIED = (408, 409, 429)  # status codes below 500 that may pass


class NotUsable(Exception):
    """Says why an answer with status 200 is not what was asked for; the request is tried again."""


class NoAnswer(Exception):
    """Carries why a server gave no usable answer after all tries."""


class Refused(Exception):
    """Carries the status and the text with which a server refused a request for good."""

    def __init__(self, status: int, text: str):
        super().__init__(f"status {status}: {text}")
        self.status, self.text = status, text


@dataclass(frozen=True)
class Endpoint:
    """Where a server answers that speaks OpenAI's protocol, and how patiently it is asked.

    Attributes:
        url: the address up to the version, such as http://localhost:8000/v1.
        model: name of the model there.
        key_env: environment variable with the API key, None for no key.
        concurrency: requests at a time.
        timeout_s: seconds a reply may take, from the connection to its last byte.
        retries: tries after the first one, on status 408, 409, 429 or 5xx, time-outs, broken connections and replies
            that are not usable.
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
class Answer:
    """What a server sent: status, seconds to wait before the next try, and the text, None if it was too large."""

    status: int
    retry_after: float
    text: str | None


class Connection:
    """Send requests to one endpoint.

    Attributes:
        endpoint: where, and how patiently.
        stop: ends the waits for a retry when it is set.
    """

    def __init__(self, endpoint: Endpoint, *, largest: int | None = None):
        self.endpoint, self.stop, self.largest = endpoint, threading.Event(), largest or LARGEST_ANSWER
        self.key = endpoint.key()
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._http = httpx.AsyncClient(
            # Compressed, a small answer could unpack to any size.
            headers={**headers, "Accept-Encoding": "identity"},
            limits=httpx.Limits(max_keepalive_connections=endpoint.concurrency),
            timeout=None,  # `_send` bounds the whole request; this would bound each read alone
        )

    def close(self) -> None:
        """Close the connections."""
        wait_for(self._http.aclose())

    def ask(
        self,
        url: str,
        body: Mapping[str, Any] | None,
        read: Callable[[str], T],
        *,
        retries: int | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Send a request until a usable answer comes.

        Args:
            url: the whole address.
            body: posted as JSON; None for a GET.
            read: makes the result from the text of an answer, or raises `NotUsable`.
            retries: tries after the first one; default the endpoint's.
            timeout_s: seconds that an answer may take; default the endpoint's.

        Raises:
            NoAnswer: none came.
            Refused: the server refused the request.
        """
        retries = self.endpoint.retries if retries is None else retries
        timeout_s = timeout_s or self.endpoint.timeout_s
        reason = ""
        for attempt in range(retries + 1):
            wait = self.endpoint.wait_s * 2**attempt * random.uniform(0.5, 1.5)
            try:
                answer = wait_for(self._send(url, body, timeout_s))
            except TimeoutError:
                reason = f"no answer within {timeout_s:g} s"
            except httpx.RequestError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                # Masked before it is cut: half a key would no longer be found.
                shown = self.without_key(answer.text or "")[:300]
                if answer.text is None:
                    reason = f"the answer is larger than {self.largest >> 20} MiB"
                elif answer.status == 200:
                    try:
                        return read(answer.text)
                    except NotUsable as why:
                        reason = f"{why}: {shown}"
                elif answer.status in _RETRIED or answer.status >= 500:
                    reason = f"status {answer.status}: {shown}"
                    wait = max(wait, answer.retry_after)
                else:
                    raise Refused(answer.status, shown)
            # wait() returns True if another request has failed for good meanwhile.
            if attempt < retries and self.stop.wait(min(wait, _LONGEST_WAIT)):
                break
        raise NoAnswer(self.without_key(reason))

    async def _send(self, url: str, body: Mapping[str, Any] | None, timeout_s: float) -> Answer:
        """Send a request once, and read what comes up to the time and the size that are allowed.

        Raises:
            TimeoutError: the last byte was not there in time.
            httpx.RequestError: the connection failed.
        """
        given: dict[str, Any] = {} if body is None else {"json": dict(body)}
        async with (
            asyncio.timeout(timeout_s),
            self._http.stream("GET" if body is None else "POST", url, **given) as response,
        ):
            retry_after = _seconds(response.headers.get("retry-after", "0"))
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self.largest:
                    return Answer(response.status_code, retry_after, None)
            return Answer(response.status_code, retry_after, data.decode("utf-8", "replace"))

    def without_key(self, text: str) -> str:
        """Mask the API key, which some servers repeat: as it is, inside JSON, or inside an address."""
        if self.key is None:
            return text
        for written in (self.key, json.dumps(self.key)[1:-1], self.key.replace("/", r"\/"), quote(self.key, "")):
            text = text.replace(written, "***")
        return text


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


def _seconds(text: str) -> float:
    """Read a Retry-After header; 0 if it is a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0

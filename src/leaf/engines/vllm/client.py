"""One server of vLLM: what it serves, which adapter it has, and completions of an embedded prompt."""

import base64
import io
import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from leaf.errors import ModelError, RunError
from leaf.http import Connection, Endpoint, NoAnswer, NotUsable, Refused

_LARGEST = 512 * 2**20  # bytes of an answer: 64 completions of 32,000 tokens are some 300 MiB
KEPT = 2  # adapters: a rollout that is still drawn has the weights before those of a validation beside it
_AT_ONCE: dict[str, Any] = {"retries": 0, "timeout_s": 10.0}
# Where every message about a wrong server points to.
START = "`leaf serve RECIPE` starts one"


@dataclass(frozen=True)
class Completion:
    """One completion: token ids with the end token, log-probabilities as drawn, and whether it ended by itself."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter to serve: its name, and the folder that a server reads; None for the bare model."""

    name: str
    folder: Path


class Lost(Exception):
    """Carries why a server gives no answers; another one may, or the same one later."""


class Server:
    """Ask one server of vLLM.

    Attributes:
        url: where it is.
        model: the name of the language model there; "" until `look` has asked.
        longest: the most positions that a prompt and its completion may take there; None until `look` has asked.
        folder: that the server has read the model from, or a hub's name of it; "" until `look` has asked.
    """

    def __init__(self, endpoint: Endpoint):
        self.url, self.model = endpoint.url, endpoint.model
        self.longest: int | None = None
        self.folder = ""
        self._connection = Connection(endpoint, largest=_LARGEST)
        self._has: list[Adapter] = []
        self._lock = threading.Lock()

    @property
    def is_near(self) -> bool:
        """Whether it runs on this machine, so that it reads the same files."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    def close(self) -> None:
        """Close the connection."""
        self._connection.stop.set()
        self._connection.close()

    # -- what is there -------------------------------------------------------------------------------------------------
    def away(self) -> str:
        """Say why the server is not there now; "" where it is."""
        try:
            self._connection.ask(f"{self.url}/health", None, lambda text: text, **_AT_ONCE)
        except (NoAnswer, Refused) as why:
            return str(why)
        return ""

    def answers(self) -> bool:
        """Tell whether the server is there now."""
        return not self.away()

    def look(self) -> str:
        """Ask what the server serves, and describe it in words.

        Raises:
            Lost: it does not answer.
            ModelError: it serves another model than the one that is named.
        """
        version = self._get("/version").get("version", "unknown")
        listed = {str(one["id"]): one for one in self._get("/v1/models")["data"] if one.get("parent") is None}
        self.model = self.model or next(iter(listed), "")
        if self.model not in listed:
            raise ModelError(
                f"The server {self.url} serves {', '.join(map(repr, listed)) or 'no model'}, not {self.model!r}. Set "
                "sampler_options.model to one of them."
            )
        self.longest = listed[self.model].get("max_model_len")
        self.folder = str(listed[self.model].get("root", ""))
        return f"vLLM {version} at {self.url} serves {self.model}, up to {self.longest} positions"

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return self._connection.ask(self.url + path, None, _read_object, timeout_s=30.0)
        except (NoAnswer, Refused) as error:
            raise Lost(str(error)) from None

    # -- adapters ------------------------------------------------------------------------------------------------------
    def take(self, adapter: Adapter) -> None:
        """Believe that the server has an adapter, which another process has brought."""
        with self._lock:
            self._has = [*(one for one in self._has if one != adapter), adapter][-KEPT:]

    def ensure(self, adapter: Adapter | None) -> None:
        """Let the server load an adapter, if it has not, and forget those before the last two.

        Raises:
            Lost: it does not answer.
            ModelError: it does not take the adapter.
        """
        with self._lock:
            if adapter is None or adapter in self._has:
                return
            body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
            try:
                self._connection.ask(f"{self.url}/v1/load_lora_adapter", body, lambda text: text)
            except Refused as refused:
                # The name has a digest of the weights, so what is loaded already is the same adapter.
                if "already been loaded" not in refused.text:
                    raise ModelError(self._not_taken(adapter, refused)) from None
            except NoAnswer as last:
                if self.answers():
                    raise ModelError(self._not_taken(adapter, last)) from None
                raise Lost(str(last)) from None
            self._has.append(adapter)
            old, self._has = self._has[:-KEPT], self._has[-KEPT:]
        for one in old:
            self.forget(one)

    def _not_taken(self, adapter: Adapter, why: Exception) -> str:
        return (
            f"The server {self.url} does not load the adapter {adapter.folder}: {why}. It has to read that folder, "
            f"take adapters of that rank, and load them while it runs; {START}."
        )

    def loads_adapters(self) -> bool:
        """Tell whether the server has the address that adapters are loaded by; one without a name is no adapter."""
        nameless = {"lora_name": "", "lora_path": ""}
        try:
            self._connection.ask(f"{self.url}/v1/load_lora_adapter", nameless, lambda text: text, **_AT_ONCE)
        except Refused as refused:
            return refused.status not in (404, 405)
        except NoAnswer as why:
            raise Lost(str(why)) from None
        return True

    def forget(self, adapter: Adapter) -> None:
        """Let the server drop an adapter; one that it no longer has, or a server that is gone, is left in peace."""
        try:
            url = f"{self.url}/v1/unload_lora_adapter"
            self._connection.ask(url, {"lora_name": adapter.name}, lambda text: text, **_AT_ONCE)
        except (NoAnswer, Refused):
            return  # it drops the oldest by itself when it needs the room

    # -- completions ---------------------------------------------------------------------------------------------------
    def complete(self, adapter: Adapter | None, embeddings: str, settings: dict[str, Any]) -> list[Completion]:
        """Draw completions of an embedded prompt.

        Args:
            adapter: whose weights are drawn from; None for the bare model.
            embeddings: of the prompt, see `encoded`.
            settings: of the drawing, under vLLM's names.

        Raises:
            Lost: the server gives no usable answer.
            RunError: it refuses the request.
        """
        body = {
            "model": self.model if adapter is None else adapter.name,
            "prompt_embeds": embeddings,
            "logprobs": 0,
            "return_token_ids": True,
            **settings,
        }
        for again in (True, False):
            self.ensure(adapter)
            try:
                return self._connection.ask(f"{self.url}/v1/completions", body, _read_completions)
            except NoAnswer as last:
                raise Lost(str(last)) from None
            except Refused as refused:
                if again and adapter is not None and refused.status == 404:
                    with self._lock:  # the server was started anew, so it has no adapter
                        self._has.clear()
                    continue
                raise RunError(
                    f"The server {self.url} refuses a prompt: {refused}. It has to serve the language model of this "
                    f"policy and take prompt embeddings; {START}."
                ) from None
        raise AssertionError("the loop returns or raises")


def encoded(embeddings: Tensor) -> str:
    """Write the embeddings (L, D) of a prompt as vLLM reads them: a tensor saved by torch, in base64."""
    buffer = io.BytesIO()
    torch.save(embeddings.detach().cpu().clone(), buffer)  # a clone, as a view is saved with all of its storage
    return base64.b64encode(buffer.getvalue()).decode()


def _read_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NotUsable("the answer is no JSON object")
    return found


def _read_completions(text: str) -> list[Completion]:
    """Read token ids and log-probabilities; texts are not looked at, since they do not say which tokens they were."""
    try:
        choices = sorted(json.loads(text)["choices"], key=lambda one: one["index"])
        found = [
            Completion(
                [int(token) for token in one["token_ids"]],
                [float(value) for value in one["logprobs"]["token_logprobs"]],
                one["finish_reason"] == "stop",
            )
            for one in choices
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NotUsable("the answer has no token ids with log-probabilities") from None
    for one in found:
        if not one.tokens or len(one.tokens) != len(one.log_probs) or not all(map(math.isfinite, one.log_probs)):
            raise NotUsable("a completion has no tokens, or not a finite log-probability for each")
    return found

"""The options of `sampler: vllm`, checked by name, type and range before a model is touched."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from leaf.credit.correction import Correction
from leaf.errors import ConfigError, did_you_mean
from leaf.fields import checked, declare
from leaf.http import Endpoint

_option = partial(declare, "sampler")
WHERE = "sampler_options of sampler: vllm"


@dataclass(frozen=True)
class VllmOptions:
    """Where servers of vLLM are, how they are asked, and how what they draw is weighed."""

    urls: list[str] = _option([], "addresses of the servers, e.g. [http://localhost:8000]")
    url: str | None = _option(None, "the address, where there is one server")
    model: str | None = _option(None, "name of the language model there; default the first that a server lists")
    key_env: str | None = _option(None, "environment variable with the servers' API key")
    adapter_dir: str | None = _option(
        None, "folder for adapters that the servers can read; needed where they run on another machine", path=True
    )
    concurrency: int = _option(16, "prompts at a time at each server", low=1, high=4096)
    timeout_s: float = _option(600.0, "seconds that the completions of a prompt may take", low=1e-3)
    retries: int = _option(2, "tries after the first one before a server counts as gone", low=0, high=100)
    start_s: float = _option(20.0, "seconds to wait for a server that has never answered and may be starting", low=0.0)
    wait_s: float = _option(600.0, "seconds to wait for a server to come back when all are gone", low=0.0)
    tolerance: float | None = _option(
        None, "largest mean |log π − log μ| in nats; default by the policy's precision", low=0.0
    )
    correction: Literal["token", "sequence", "none"] = _option("token", "level of the importance weights")
    bound: Literal["truncate", "mask"] = _option("truncate", "what becomes of weights beyond the threshold")
    threshold: float = _option(2.0, "largest importance weight", low=1.0)
    overlap: bool = _option(False, "sample the next rollout while the update runs, one step off-policy")

    def endpoints(self) -> list[Endpoint]:
        """Make the servers' endpoints; an address may end with /v1."""
        given = [self.url] if self.url is not None else self.urls
        how = {name: getattr(self, name) for name in ("key_env", "concurrency", "timeout_s", "retries")}
        return [Endpoint(url.rstrip("/").removesuffix("/v1"), self.model or "", **how) for url in given]

    def weighing(self) -> Correction:
        """Take the options of the importance weights."""
        return Correction(self.correction, self.bound, self.threshold)


def vllm_options(given: Mapping[str, Any]) -> VllmOptions:
    """Check options and make them an object.

    Raises:
        ConfigError: one is unknown, or has a wrong type or value; or no server is named.
    """
    hints = typing.get_type_hints(VllmOptions)
    about = {one.name: one.metadata for one in dataclasses.fields(VllmOptions)}
    for name in given:
        if name not in about:
            raise ConfigError(f"The {WHERE} have no {name}.{did_you_mean(name, about)} Allowed are {', '.join(about)}.")
    named = {name: f"sampler_options.{name}" for name in given}
    options = VllmOptions(**{name: checked(named[name], given[name], hints[name], about[name]) for name in given})
    if (options.url is None) == (not options.urls):
        raise ConfigError(
            f"The {WHERE} name {'a url and urls' if options.urls else 'no server'}. Give one of them, such as "
            "{url: http://localhost:8000}; `leaf serve RECIPE` starts a server."
        )
    options.endpoints()  # which refuses unusable addresses
    return options

"""Sample with servers of vLLM: leaf embeds the audio, a server of the bare language model continues the embeddings.

So audio goes exactly the way of the trainer, whether or not vLLM knows the speech model. Prompts, token ids and the
adapter travel. Texts do not: a text does not say which tokens it was.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch

from leaf.engines.vllm.client import KEPT, START, Adapter, Completion, Lost, Server, encoded
from leaf.engines.vllm.export import adapter_for_vllm
from leaf.engines.vllm.names import plain_config
from leaf.engines.vllm.options import VllmOptions
from leaf.engines.vllm.pool import Work
from leaf.errors import ConfigError, ModelError, RunError
from leaf.model.policy import Policy, Prompt
from leaf.model.sampler import Drawing
from leaf.model.sampling import Generators, Group


class _Task(NamedTuple):
    """Some completions of one prompt, drawn by one request: their numbers in the group, and the seed of the first."""

    prompt: int
    completions: tuple[int, ...]
    seed: int
    greedy: bool


class VllmSampler:
    """Draw from servers of vLLM that have the policy's language model.

    Args:
        options: where they are and how they are asked.
        folder: where adapters are written, one folder for each version; the servers read it. It is this run's own.
        say: takes lines about servers that go and come back.

    Attributes:
        interrupt: called about once a second while completions are drawn; what it raises ends the drawing.
    """

    exact = False

    def __init__(self, options: VllmOptions, folder: str | Path, *, say: Callable[[str], None] = print):
        self.options, self.folder, self.say = options, Path(folder).absolute(), say
        self.interrupt: Callable[[], None] = lambda: None
        self.servers = self._made()
        self.adapter: Adapter | None = None
        self.version = 0
        self._written: list[Path] = []
        far = [server.url for server in self.servers if not server.is_near]
        if far and options.adapter_dir is None:
            raise ConfigError(
                f"The server {far[0]} may be on another machine. Set sampler_options.adapter_dir to a folder that this "
                "machine and the server both see under the same path."
            )

    def begin(self, policy: Policy, interrupt: Callable[[], None] = lambda: None) -> list[str]:
        """Look at the servers, and whether they take this policy's prompts; wait shortly for one that is starting.

        Raises:
            ModelError, RunError: a server has another model, lacks an option, or none answers in time.
        """
        self.interrupt = interrupt
        self.servers = self.servers or self._made()  # it may begin again after it was closed
        plain_config(policy.family, policy.base.config)  # refuses decoders that embeddings do not suffice for
        nothing = torch.zeros(2, policy.text_config.hidden_size, dtype=policy.base.dtype)
        return [self._reach(server, encoded(nothing)) for server in self.servers]

    def _reach(self, server: Server, embeddings: str) -> str:
        """Wait for a server that may be starting, look at it, and let it continue an embedded prompt."""
        patience = self.options.start_s
        began, told = time.monotonic(), False
        while why := server.away():
            if time.monotonic() - began >= patience:
                raise RunError(
                    f"No server of vLLM answers at {server.url} ({why}). Start one, as `leaf serve RECIPE` does, or "
                    f"correct the address. One that is starting is waited for {patience:g} s (sampler_options.start_s)."
                )
            if not told:
                self.say(f"no server of vLLM answers at {server.url} yet; waiting up to {patience:g} s for it to start")
                told = True
            self.interrupt()
            time.sleep(min(1.0, patience))
        try:
            line = server.look()
            server.complete(None, embeddings, {"max_tokens": 1, "temperature": 1.0})
        except Lost as lost:
            raise RunError(
                f"The server {server.url} answers, and completes no prompt: {lost}. Look at its log."
            ) from None
        return line

    def sync(self, policy: Policy, version: int, *, push: bool = True) -> None:
        """Write the adapter into a folder of its own and let the servers load it; older ones are removed.

        The folder's name has the version and a digest of the weights: a server keeps what it computed under the name
        and path of an adapter, so changed weights need new ones.

        Raises:
            ModelError: vLLM has no place for the adapter, or a server does not take it.
        """
        self.version = version
        if not isinstance(policy.model, peft.PeftModel):
            self.adapter = None
            return
        name = f"leaf-{max(version, 0):06d}-{_digest(policy)}"
        adapter = self.adapter = Adapter(name, self.folder / name)
        if not push:
            for server in self.servers:
                server.take(adapter)
            return
        if not adapter.folder.exists():
            adapter_for_vllm(policy, adapter.folder)
        for server in self.servers:
            try:
                server.ensure(adapter)
            except Lost as lost:  # it gets the adapter when it is back
                self.say(f"the server {server.url} did not take the new adapter: {lost}")
        self._written = [one for one in self._written if one != adapter.folder] + [adapter.folder]
        for folder in self._written[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
        del self._written[:-KEPT]

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing, generators: Generators = None
    ) -> list[Group]:
        """Draw a group for each prompt; a server that dies meanwhile costs time and nothing else.

        The surprisal of greedy completions is that at temperature 1.

        Raises:
            ConfigError: the drawing is one that a server does not do.
            RunError: no server came back in time, or one refuses a prompt.
        """
        return self.start(policy, prompts, drawing, generators)()

    def start(
        self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing, generators: Generators = None
    ) -> Callable[[], list[Group]]:
        """Settle what `sample` draws and from which weights, and give a function that draws it, in any thread."""
        if drawing.distinct or drawing.entropy:
            what = "draw distinct completions" if drawing.distinct else "give entropies"
            raise ConfigError(f"A server of vLLM does not {what}. Set sampler=local.")
        if drawing.num_completions < 1:
            raise ConfigError(f"num_completions is {drawing.num_completions}; it must be at least 1.")
        bodies = [encoded(prompt.embeddings) for prompt in prompts]
        tasks = _tasks(len(prompts), drawing, generators)
        adapter, version = self.adapter, self.version
        work = self._work(
            lambda server, task: server.complete(adapter, bodies[task.prompt], _settings(policy, drawing, task))
        )

        def draw() -> list[Group]:
            given = _dealt(tasks, work.run(tasks, self.interrupt), len(prompts))
            make = partial(_group, eos=policy.eos_token_ids, version=version)
            return [
                make(prompt, [drawn[k] for k in range(drawing.num_completions)])
                for prompt, drawn in zip(prompts, given, strict=True)
            ]

        return draw

    def close(self) -> None:
        """Close the connections, and remove the adapters from the servers and from the disk."""
        for server in self.servers:
            if self.adapter is not None:
                server.forget(self.adapter)
            server.close()
        self.servers, self.adapter, self._written = [], None, []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _made(self) -> list[Server]:
        return [Server(endpoint) for endpoint in self.options.endpoints()]

    def _work(self, action: Callable[[Server, Any], Any]) -> Work:
        options = self.options
        return Work(self.servers, action, concurrency=options.concurrency, wait_s=options.wait_s, say=self.say)


def _digest(policy: Policy) -> str:
    """Compute a digest of the adapter's weights."""
    digest = sha256()
    for name, value in sorted(peft.get_peft_model_state_dict(policy.model, save_embedding_layers=False).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _tasks(prompts: int, drawing: Drawing, generators: Generators) -> list[_Task]:
    """Cut completions into requests: one for each prompt, or one for each completion that has its own seed."""
    every = tuple(range(drawing.num_completions))
    greedy = drawing.greedy
    each = [greedy] * len(every) if isinstance(greedy, bool) else list(greedy)
    if generators is None or isinstance(generators, torch.Generator):
        draws = torch.randint(2**62, (prompts,), generator=generators).tolist()
        seeds: list[int | list[int]] = [*draws]
    else:
        seeds = [
            one.initial_seed() >> 1 if isinstance(one, torch.Generator) else [g.initial_seed() >> 1 for g in one]
            for one in generators
        ]
    tasks = []
    for i, seed in enumerate(seeds):
        if isinstance(seed, int) and len(set(each)) == 1:
            tasks.append(_Task(i, every, seed, each[0]))
        else:
            own = seed if isinstance(seed, list) else [seed + k for k in every]
            tasks += [_Task(i, (k,), own[k], each[k]) for k in every]
    return tasks


def _dealt(tasks: Sequence[_Task], results: Sequence[list[Completion]], prompts: int) -> list[dict[int, Completion]]:
    """Put what came for each request in its place: prompt, and number of the completion."""
    found: list[dict[int, Completion]] = [{} for _ in range(prompts)]
    for task, completions in zip(tasks, results, strict=True):
        if len(completions) != _asked(task):
            raise ModelError(f"A server gave {len(completions)} completions; {_asked(task)} were asked for.")
        if task.greedy:
            completions = completions * len(task.completions)
        found[task.prompt].update(zip(task.completions, completions, strict=True))
    return found


def _asked(task: _Task) -> int:
    """Count the completions to ask for: all greedy ones of a prompt are the same, and vLLM gives one."""
    return 1 if task.greedy else len(task.completions)


def _settings(policy: Policy, drawing: Drawing, task: _Task) -> dict[str, Any]:
    """Say how to draw in vLLM's names; all that a server could have a default of its own for is said."""
    drawn = {"temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": drawing.top_k or 0}
    return {
        "n": _asked(task),
        "seed": task.seed,
        "max_tokens": drawing.max_new_tokens,
        # The policy's own end tokens, and no others.
        "stop_token_ids": list(policy.eos_token_ids),
        "ignore_eos": True,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **({"temperature": 0.0, "top_p": 1.0, "top_k": 0} if task.greedy else drawn),
    }


def _group(prompt: Prompt, drawn: Sequence[Completion], eos: Sequence[int], version: int) -> Group:
    """Make a group of what a server has drawn; the end token counts in."""
    lengths = torch.tensor([len(one.tokens) for one in drawn])
    tokens = torch.zeros(len(drawn), int(lengths.max()), dtype=torch.long)
    surprisal = torch.zeros(tokens.shape)
    for k, one in enumerate(drawn):
        if one.ended and one.tokens[-1] not in eos:
            raise ModelError(
                f"A server ended a completion with the token {one.tokens[-1]}, which is none of the policy's end "
                f"tokens {list(eos)}. Serve the language model as leaf exports it; {START}."
            )
        tokens[k, : len(one.tokens)] = torch.tensor(one.tokens)
        surprisal[k, : len(one.tokens)] = -torch.tensor(one.log_probs)
    truncated = torch.tensor([not one.ended for one in drawn])
    return Group(prompt, tokens, lengths, surprisal, truncated, version=version)

"""Find vLLM on this machine and start a server of it as leaf needs it.

vLLM pins an older transformers than leaf needs, so it lives in an environment of its own and is only ever called as a
program.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from leaf.errors import ConfigError, RunError

VARIABLE = "LEAF_VLLM"  # names an environment with vLLM, or its program
_HERE = Path(".venv-vllm")  # where `make vllm` puts it
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as the largest rank of an adapter
_LINES = 15  # of a server's log that a message about its end quotes


def find_vllm(given: str | Path | None = None) -> Path:
    """Find the program `vllm`: what is given, what LEAF_VLLM names, .venv-vllm, this environment's, or one on the path.

    Args:
        given: an environment, its Python, or the program.

    Raises:
        ConfigError: there is none.
    """
    for name, place in (("--vllm", given), (VARIABLE, os.environ.get(VARIABLE))):
        if place:
            if (program := _program(Path(place))) is None:
                raise ConfigError(
                    f"{name} is {place}, and there is no program vllm. Name an environment that vLLM is installed in, "
                    "or its bin/vllm."
                )
            return program
    on_path = shutil.which("vllm")
    for place in (_HERE, Path(sys.executable), *([Path(on_path)] if on_path else [])):
        if (program := _program(place)) is not None:
            return program
    raise ConfigError(
        "vLLM is not on this machine: there is no .venv-vllm, and no vllm in this environment or on the path. Install "
        f"it in an environment of its own (`pip install vllm`; for CPUs `make vllm`), and name that by {VARIABLE}."
    )


def _program(place: Path) -> Path | None:
    """Find the program in an environment, beside its Python, or at the place itself."""
    found = (place / "bin" / "vllm", place if place.name == "vllm" else place.parent / "vllm")
    return next((one.absolute() for one in found if one.is_file()), None)


def largest_rank(rank: int) -> int:
    """Round the rank of an adapter up to one that vLLM takes as the largest.

    Raises:
        ConfigError: it takes none so large.
    """
    taken = [one for one in _RANKS if one >= rank]
    if not taken:
        raise ConfigError(f"The adapter has rank {rank}, and vLLM takes up to {_RANKS[-1]}. Merge it to serve it.")
    return taken[0]


def serve_command(
    program: Path,
    model: Path,
    *,
    rank: int,
    dtype: str,
    port: int,
    host: str = "127.0.0.1",
    longest: int | None = None,
    adapters: Mapping[str, Path] | None = None,
    layers: Sequence[str] = (),
    more: Sequence[str] = (),
) -> list[str]:
    """Write the command that serves an exported language model to leaf.

    Args:
        program: see `find_vllm`.
        model: folder of `export_language_model`.
        rank: of the adapters.
        dtype: float32 or bfloat16, the precision of the weights.
        port, host: where it listens; by default this machine alone reaches it.
        longest: most positions of a prompt and its completion; None for what the model takes.
        adapters: folders of `adapter_for_vllm` by the name they are served under; more may be loaded later.
        layers: names of the linear layers that adapters are on, such as q_proj; none for all. vLLM 0.32 on a CPU puts
            an adapter on the embedding otherwise, and dies when prompts and completions share a batch.
        more: further arguments of `vllm serve`.
    """
    options = ["--host", host, "--port", str(port), "--dtype", dtype]
    options += ["--enable-prompt-embeds", "--enable-lora", "--max-lora-rank", str(largest_rank(rank))]
    # Two: completions of a rollout may still be drawn with one version when the next one is there.
    options += ["--max-loras", "2"]
    # Log-probabilities of the distribution that tokens are drawn from, temperature and top-p included.
    options += ["--logprobs-mode", "processed_logprobs"]
    options += ["--lora-target-modules", *layers] if layers else []
    # Without a GPU the compiled graphs take minutes to make, and a C++ compiler. A prompt that comes in pieces ends
    # vLLM 0.32 there: it winds the random numbers of its seed back, which generators of a CPU cannot.
    # Its blocks are of 128 positions, and completions of a prompt share whole blocks only: eight completions of each of
    # two shorter prompts took 16 s, and 3 s with blocks of 32.
    on_cpu = ["--enforce-eager", "--no-enable-chunked-prefill", "--block-size", "32"]
    options += [] if torch.cuda.is_available() else on_cpu
    options += [] if longest is None else ["--max-model-len", str(longest)]
    options += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())] if adapters else []
    return [str(program), "serve", str(model), *options, *more]


def server_environment() -> dict[str, str]:
    """Make the environment variables of a server; what the user has set stays."""
    wanted = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}  # or adapters of the next steps could not be loaded
    if not torch.cuda.is_available():
        # Room for the cache in GiB, and threads that are not tied to cores that others use.
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # The parent's own Python paths would bring the parent's packages into vLLM's environment.
    return wanted | {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}


def check_port(host: str, port: int) -> None:
    """Refuse an address that no server can listen on.

    Raises:
        ConfigError: another program listens there, or this machine does not have the address.
    """
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(kind) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that ended may linger
            bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"No server can listen on port {port} of {host}: {error.strerror}. Stop what listens there, or choose "
            "another address with --port and --host."
        ) from None


def saying_when_ready(host: str, port: int) -> None:
    """Let another program look for the server that this process becomes, and say when it answers."""
    near = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # the address of all is none to ask
    url = f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
    subprocess.Popen([sys.executable, str(Path(__file__).with_name("ready.py")), str(os.getpid()), url])


def free_port() -> int:
    """Find a port that nobody listens on at this moment."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path, *, wait_s: float = 600.0) -> Iterator[str]:
    """Start a server, wait until it answers, give its address, and stop it at the end with all its processes.

    It also ends when this process does, even by a kill.

    Args:
        command: see `serve_command`; of this machine.
        port: that it listens on.
        log: file for what it says.
        wait_s: how long it may take to answer.

    Raises:
        RunError: it ended, or did not answer in time; the end of its log is quoted.
    """
    guarded = [sys.executable, str(Path(__file__).with_name("guard.py")), str(os.getpid()), *command]
    with log.open("wb") as out:
        process = subprocess.Popen(
            guarded, stdout=out, stderr=subprocess.STDOUT, env=server_environment(), start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log, wait_s)
        yield url
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, wait_s: float) -> None:
    import httpx2

    limit = time.monotonic() + wait_s
    with httpx2.Client(trust_env=False, timeout=5.0) as client:
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if client.get(f"{url}/health").status_code == 200:
                    return
            ended = process.poll()
            if ended is not None or time.monotonic() > limit:
                what = f"ended with {ended}" if ended is not None else f"did not answer within {wait_s:g} s"
                said = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-_LINES:])
                raise RunError(f"The vLLM server {what}. The end of its log {log}:\n{said}")
            time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it has started: its own session, which nobody else is in."""
    for number, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):  # a worker that outlived its parent
        os.killpg(process.pid, signal.SIGKILL)

"""Rollouts of tiny models from servers of vLLM: they are the policy's, and nothing is lost when a server dies.

    python -m benchmarks.vllm_rollouts families [--steps 20]
    python -m benchmarks.vllm_rollouts kills [--runs 10]

`families` trains tiny models of three families and records how far server and policy are apart at every step. `kills`
trains a tiny GLM-ASR model and kills its server with all its processes at a random moment, then starts it again. In
every other run the sampler does not wait for that: the run ends, and is resumed.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.records import RESULTS, machine
from leaf import LeafTrainer
from leaf.config import LeafConfig
from leaf.engines.vllm.export import export_language_model
from leaf.engines.vllm.launch import find_vllm, free_port, serve_command, server_environment
from leaf.engines.vllm.options import vllm_options
from leaf.errors import RunInterrupted
from leaf.files import read_rows
from leaf.model.policy import Policy
from tests.helpers import tiny
from tests.helpers.families import build
from tests.helpers.models.common import wider

FILE = RESULTS / "vllm_rollouts.json"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS, COMPLETIONS = 12, 8
DIFFERENCE = "sampling/sampling_logp_difference/"


class Killable:
    """A server in a session of its own that can be killed at any moment and started again at the same address."""

    def __init__(self, model: Path, folder: Path):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        more = ["--enforce-eager", "--max-num-seqs", "16"]
        how = {"rank": 8, "dtype": "float32", "port": self.port, "longest": 512, "layers": LAYERS, "more": more}
        self.command, self.log = serve_command(find_vllm(), model, **how), folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=subprocess.STDOUT, env=server_environment(), start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def wide(case: str):
    with wider():
        return build(case)


def recipe(folder: Path, url: str, wait_s: float = 600.0, steps: int = STEPS) -> LeafConfig:
    """Make a short recipe."""
    return LeafConfig(
        output_dir=str(folder),
        max_steps=steps,
        prompts_per_rollout=2,
        num_completions=COMPLETIONS,
        max_new_tokens=24,
        learning_rate=1e-2,
        lora_r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        eval_every=0,
        save_every=1,
        record_every=1,
        device="cpu",
        top_p=1.0,
        sampler="vllm",
        sampler_options={"url": url, "wait_s": wait_s, "start_s": 600.0, "retries": 1},
    )


def length(completions, **columns):
    return [len(text) / 20 for text in completions]


def one_kill(server: Killable, folder: Path, draw: random.Random, *, waits: bool, typical: float) -> dict:
    """Train while the server is killed once; return what became of the run."""
    said: list[str] = []
    moment = draw.uniform(0.1, 0.9) * typical
    killed_at: list[int] = []
    stopped = threading.Event()

    def trainer() -> LeafTrainer:
        model, processor = wide("glmasr")
        config = recipe(folder, server.url, 600.0 if waits else 3.0)
        return LeafTrainer(model, [length], config, tiny.rows(5), None, processor, say=said.append)

    made = trainer()

    def kill_later() -> None:
        while made.done < 1:  # the moment is counted from the end of the first step
            time.sleep(0.01)
        if not stopped.wait(moment):
            killed_at.append(made.done)
            server.kill()
            if waits:
                server.start()

    killer = threading.Thread(target=kill_later)
    killer.start()
    resumed = False
    try:
        made.train()
    except RunInterrupted as error:
        if waits:
            raise
        said.append(str(error))
        server.start()
        made = trainer()
        made.config.sampler_options["wait_s"] = 600.0
        made.sampler.options = vllm_options(made.config.sampler_options)  # type: ignore[attr-defined]
        made.train(resume_from_checkpoint=True)
        resumed = True
    stopped.set()
    killer.join()
    records = read_rows(folder / "metrics.jsonl")
    groups = read_rows(folder / "groups.jsonl")
    return {
        "waits": waits,
        "killed_after_step": killed_at[0] if killed_at else None,
        "resumed": resumed,
        "steps": [record["step"] for record in records] == list(range(1, STEPS + 1)),
        "groups_whole": all(len(group["completions"]) == COMPLETIONS for group in groups) and len(groups) == 2 * STEPS,
        "gone": sum("is gone" in line for line in said),
        "largest_difference": max(record[DIFFERENCE + "max"] for record in records),
    }


def kills(args) -> dict:
    draw = random.Random(args.seed)
    runs: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, processor = wide("glmasr")
        server = Killable(export_language_model(Policy.wrap(model, processor), folder / "model"), folder)
        server.start()
        try:
            began = time.monotonic()
            made = LeafTrainer(
                model, [length], recipe(folder / "first", server.url, 600.0), tiny.rows(5), None, processor
            )
            made.train()
            records = read_rows(folder / "first/metrics.jsonl")
            typical = sum(record["seconds/step"] for record in records[1:])
            print(f"a run without a kill: {time.monotonic() - began:.0f} s, {typical:.1f} s behind its first step")
            while len(runs) < args.runs:
                found = one_kill(
                    server,
                    folder / f"run-{len(runs)}-{time.monotonic_ns()}",
                    draw,
                    waits=len(runs) % 2 == 0,
                    typical=typical,
                )
                if found["killed_after_step"] is None:
                    continue  # the run was over before its moment
                runs.append(found)
                print(found, flush=True)
        finally:
            server.kill()
    return {"runs": runs, "machine": machine(1), "lost": sum(not (r["steps"] and r["groups_whole"]) for r in runs)}


def trained(case: str, config: LeafConfig) -> list[dict]:
    """Train a tiny model by a recipe, and read the records of its steps."""
    model, processor = wide(case)
    LeafTrainer(model, [length], config, tiny.rows(5), None, processor, say=lambda line: None).train()
    return read_rows(Path(config.output_dir or "") / "metrics.jsonl")


@contextlib.contextmanager
def server_of(case: str, folder: Path):
    model, processor = wide(case)
    server = Killable(export_language_model(Policy.wrap(model, processor), folder / case), folder)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def families(args) -> dict:
    found: dict = {}
    for case in ("granite_speech", "glmasr", "qwen2_audio"):
        with tempfile.TemporaryDirectory() as name, server_of(case, Path(name)) as url:
            records = trained(case, recipe(Path(name) / "run", url, steps=args.steps))
        found[case] = {"steps": len(records)}
        for which in ("mean", "max"):
            found[case][which] = [float(f"{record[DIFFERENCE + which]:.3g}") for record in records]
    return found | {"machine": machine(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_kills = commands.add_parser("kills")
    of_kills.add_argument("--runs", type=int, default=10)
    of_kills.add_argument("--seed", type=int, default=0)
    commands.add_parser("families").add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    found = {"families": families, "kills": kills}[args.command](args)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps(known | {args.command: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

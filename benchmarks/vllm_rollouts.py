"""Rollouts from servers of vLLM: nothing is lost when one dies, and how fast they are beside the local sampler.

    python -m benchmarks.vllm_rollouts families [--steps 20]
    python -m benchmarks.vllm_rollouts kills [--runs 10]
    python -m benchmarks.vllm_rollouts learning [--steps 40] [--seeds 3]
    python -m benchmarks.vllm_rollouts throughput --url http://localhost:8000 [--turns 7]

`families` trains tiny models of three families and records how far server and policy are apart at every step. `kills`
trains a tiny GLM-ASR model and kills its server with all its processes at a random moment, then starts it again. In
every other run the sampler does not wait for that: the run ends, and is resumed. `learning` trains that model with
either sampler. `throughput` asks a server of the embedded model, exported, that takes adapters of rank 64; both
samplers draw the same prompts in turns.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.records import RESULTS, machine
from leaf import LeafTrainer
from leaf.config import LeafConfig
from leaf.data import load
from leaf.engines.vllm.export import export_language_model
from leaf.engines.vllm.launch import find_vllm, free_port, serve_command, server_environment
from leaf.engines.vllm.options import vllm_options
from leaf.engines.vllm.sampler import VllmSampler
from leaf.errors import RunError
from leaf.files import read_rows
from leaf.model.demo import resolve_model
from leaf.model.from_recipe import recipe_lora
from leaf.model.policy import Policy
from leaf.model.sampler import Drawing, LocalSampler
from leaf.model.sampler_check import random_adapter
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


def recipe(folder: Path, url: str | None, wait_s: float = 600.0, steps: int = STEPS, seed: int = 0) -> LeafConfig:
    """Make a short recipe; without a url the policy itself draws."""
    options = {} if url is None else {"url": url, "wait_s": wait_s, "retries": 1}
    return LeafConfig(
        output_dir=str(folder),
        max_steps=steps,
        seed=seed,
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
        sampler="local" if url is None else "vllm",
        sampler_options=options,
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
    except RunError as error:
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


def throughput(args) -> dict:
    """Draw the same prompts with both samplers in turns, and compare completions' tokens per second."""
    config = LeafConfig(lora_r=64, lora_dropout=0.0)
    policy = Policy.load(resolve_model("demo"), lora=recipe_lora(config))
    rows = load("asterisk_qa", "train", limit=args.prompts).to_list()
    prompts = policy.embed(rows)
    remote = VllmSampler(vllm_options({"url": args.url}), Path(tempfile.mkdtemp(prefix="leaf-adapters-")))
    drawing = Drawing(COMPLETIONS, args.tokens)
    rates: dict[str, list[float]] = {"local": [], "vllm": []}
    with random_adapter(policy, prompts[:1], 1e-3):
        for line in remote.begin(policy):
            print(line)
        remote.sync(policy, 0)
        for turn in range(args.turns + 1):
            for name, sampler in (("local", LocalSampler()), ("vllm", remote)):
                draws = [torch.Generator().manual_seed(1000 * turn + i) for i in range(len(prompts))]
                began = time.perf_counter()
                groups = sampler.sample(policy, prompts, drawing, draws)
                rate = sum(int(group.lengths.sum()) for group in groups) / (time.perf_counter() - began)
                print(turn, name, f"{rate:.1f} tokens/s", flush=True)
                if turn > 0:  # the first warms up
                    rates[name].append(rate)
    remote.close()
    ratios = sorted(b / a for a, b in zip(rates["local"], rates["vllm"], strict=True))
    return {
        "prompts": len(prompts),
        "completions": COMPLETIONS,
        "max_new_tokens": args.tokens,
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "vllm_over_local": {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
        "turns": args.turns,
        "machine": machine(torch.get_num_threads()),
        "load": os.getloadavg()[0],
    }


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


def learning(args) -> dict:
    """Compare the rewards of runs with either sampler: means over their first and their last five steps."""
    runs: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name, server_of("glmasr", Path(name)) as url:
        for sampler, at in (("local", None), ("vllm", url)):
            for seed in range(args.seeds):
                run = f"{sampler}-{seed}"
                records = trained("glmasr", recipe(Path(name) / run, at, steps=args.steps, seed=seed))
                rewards = [record["reward_mean"] for record in records]
                runs[run] = {"sampler": sampler, "steps": len(records)}
                parts = (("first_5", rewards[:5]), ("steps_16_20", rewards[15:20]), ("last_5", rewards[-5:]))
                runs[run] |= {part: round(statistics.fmean(values), 4) for part, values in parts}
    return {"model": "tiny GLM-ASR, reward: length of the text", "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_kills = commands.add_parser("kills")
    of_kills.add_argument("--runs", type=int, default=10)
    of_kills.add_argument("--seed", type=int, default=0)
    of_throughput = commands.add_parser("throughput")
    of_throughput.add_argument("--url", required=True)
    of_throughput.add_argument("--turns", type=int, default=7)
    of_throughput.add_argument("--prompts", type=int, default=6)
    of_throughput.add_argument("--tokens", type=int, default=32)
    of_learning = commands.add_parser("learning")
    of_learning.add_argument("--steps", type=int, default=40)
    of_learning.add_argument("--seeds", type=int, default=3)
    commands.add_parser("families").add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    done = {"families": families, "kills": kills, "throughput": throughput, "learning": learning}
    found = done[args.command](args)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps(known | {args.command: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

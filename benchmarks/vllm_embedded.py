"""A server of the embedded model on this machine beside the local sampler: how fast it draws, and what `overlap` gains.

    python -m benchmarks.vllm_embedded throughput [--rank 16] [--layers all|qv] [--block-size 32] [--turns 5]
    python -m benchmarks.vllm_embedded overlap [--steps 8] [--turns 3]

`throughput` lets both samplers draw the same prompts in turns, every time with another adapter, as in training: so a
server keeps nothing of the turn before. `overlap` trains some steps with and without it, in turns, with one server.
Seconds by the clock say little on a machine that others use, so seconds of CPU, the server's and leaf's, stand beside.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.recipe import qa_recipe
from benchmarks.records import RESULTS, machine
from leaf.data import load
from leaf.engines.vllm.export import export_language_model, linear_layers
from leaf.engines.vllm.launch import find_vllm, free_port, running, serve_command
from leaf.engines.vllm.options import vllm_options
from leaf.engines.vllm.sampler import VllmSampler
from leaf.files import read_rows
from leaf.model.demo import resolve_model
from leaf.model.from_recipe import recipe_lora
from leaf.model.policy import Policy
from leaf.model.sampler import Drawing, LocalSampler
from leaf.train.trainer import RLTrainer

FILE = RESULTS / "vllm_rollouts.json"
COMPLETIONS, TOKENS = 8, 48
LAYERS = {"all": None, "qv": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Serving:
    """A server, and the process that leads its session."""

    url: str
    session: int

    def cpu_seconds(self) -> float:
        """Add up what the living processes of its session have used."""
        used = 0.0
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = place.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == self.session:
                used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used


@contextmanager
def serving(config, more=()) -> Iterator[Serving]:
    """Serve the language model of a recipe's model as `leaf serve` does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = Policy.load(resolve_model(config.model), dtype=config.dtype)
        model, port = export_language_model(policy, folder / "language_model"), free_port()
        layers = config.lora_layers or linear_layers(policy.family, policy.base.config)
        del policy
        how = {"rank": config.lora_r, "dtype": config.dtype, "port": port, "longest": 512, "layers": layers}
        command = serve_command(find_vllm(), model, more=["--max-num-seqs", "32", *more], **how)
        with running(command, port, folder / "server.log") as url:
            yield Serving(url, _session_of(port))


def _session_of(port: int) -> int:
    """Find the session of the server that was started for a port."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        words = place.read_bytes().split(b"\0")
        if b"--port" in words and str(port).encode() in words:
            return os.getsid(int(place.parent.name))
    raise RuntimeError(f"no process has --port {port}")


def recipe(*more: str):
    given = ["dtype=bfloat16", "device=cpu", "prompts_per_rollout=2", "eval_every=0", "record_every=0", *more]
    return qa_recipe(given)


def throughput(args) -> dict:
    """Draw the same prompts with both samplers in turns, and compare completions' tokens per second."""
    layers = "" if LAYERS[args.layers] is None else f"lora_layers={LAYERS[args.layers]}"
    config = recipe(f"lora_r={args.rank}", f"lora_alpha={2 * args.rank}", *([layers] if layers else []))
    policy = Policy.load(resolve_model(config.model), lora=recipe_lora(config), dtype=config.dtype)
    prompts = policy.embed(load(config.task, config.train_split, limit=args.prompts).to_list())
    drawing = Drawing(COMPLETIONS, TOKENS)
    noise = {name: torch.randn_like(p) for name, p in policy.named_parameters() if "lora_B" in name}
    turns: list[dict] = []
    with serving(config, ["--block-size", str(args.block_size)]) as server:
        remote = VllmSampler(vllm_options({"url": server.url}), tempfile.mkdtemp(prefix="leaf-adapters-"))
        remote.begin(policy)
        for turn in range(args.turns + 1):
            with torch.no_grad():
                for name, p in policy.named_parameters():
                    if name in noise:
                        p.copy_(1e-3 * (1 + turn) / args.turns * noise[name])
            remote.sync(policy, turn)
            for name, sampler in (("local", LocalSampler()), ("vllm", remote)):
                draws = [torch.Generator().manual_seed(1000 * turn + i) for i in range(len(prompts))]
                its = server.cpu_seconds if name == "vllm" else lambda: 0.0
                cpu, began = time.process_time() + its(), time.perf_counter()
                groups = sampler.sample(policy, prompts, drawing, draws)
                tokens, wall = sum(int(group.lengths.sum()) for group in groups), time.perf_counter() - began
                used = time.process_time() + its() - cpu
                print(turn, name, f"{tokens} tokens, {wall:.1f} s, {used:.1f} s of CPU", flush=True)
                if turn > 0:  # the first warms up
                    turns.append({"sampler": name, "tokens": tokens, "wall": wall, "cpu": used})
        remote.close()

    def rates(name: str, per: str) -> list[float]:
        return [one["tokens"] / one[per] for one in turns if one["sampler"] == name]

    found = {"prompts": [prompt.length for prompt in prompts], "completions": COMPLETIONS, "lora_r": args.rank}
    found |= {"lora_layers": args.layers, "block_size": args.block_size, "turns": args.turns}
    for per in ("wall", "cpu"):
        ratios = [b / a for a, b in zip(rates("local", per), rates("vllm", per), strict=True)]
        found[f"tokens_per_{per}_second"] = {name: median(rates(name, per)) for name in ("local", "vllm")}
        found[f"vllm_over_local_by_{per}"] = spread(ratios)
    return found | about(config)


def overlap(args) -> dict:
    """Train with and without overlap in turns, and compare the seconds of a step."""
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    with serving(recipe()) as server, tempfile.TemporaryDirectory() as name:
        for turn in range(args.turns):
            for which in seconds:
                options = f"{{url: '{server.url}', overlap: {str(which == 'with').lower()}}}"
                where = Path(name) / f"{which}-{turn}"
                config = recipe(
                    *(f"output_dir={where}", f"max_steps={args.steps}", f"seed={turn}", "save_every=100"),
                    *("sampler=vllm", f"sampler_options={options}"),
                )
                trainer, marks = RLTrainer.from_recipe(config, say=lambda line: None), []

                def mark(record, marks=marks):
                    marks.append((time.perf_counter(), time.process_time() + server.cpu_seconds()))

                trainer.on_step = mark
                trainer.train()
                # The first step warms up, and behind the last one nothing is drawn ahead.
                (began, cpu_began), (ended, cpu_ended) = marks[0], marks[-2]
                seconds[which].append((ended - began) / (args.steps - 2))
                cpu[which].append((cpu_ended - cpu_began) / (args.steps - 2))
                print(turn, which, f"{seconds[which][-1]:.2f} s a step, {cpu[which][-1]:.2f} s of CPU", flush=True)
                assert len(read_rows(where / "metrics.jsonl")) == args.steps
                shutil.rmtree(where)
    ratios = [a / b for a, b in zip(seconds["without"], seconds["with"], strict=True)]
    found = {"steps": args.steps, "turns": args.turns}
    found |= {"seconds_per_step": {which: median(values) for which, values in seconds.items()}}
    found |= {"cpu_seconds_per_step": {which: median(values) for which, values in cpu.items()}}
    found["steps_per_second_with_over_without"] = spread(ratios)
    return found | about(recipe())


def median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def spread(ratios: list[float]) -> dict[str, float]:
    ordered = sorted(round(one, 3) for one in ratios)
    return {"median": statistics.median(ordered), "lowest": ordered[0], "highest": ordered[-1]}


def about(config) -> dict:
    return {"dtype": config.dtype, "machine": machine(torch.get_num_threads()), "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_throughput = commands.add_parser("throughput")
    of_throughput.add_argument("--rank", type=int, default=16)
    of_throughput.add_argument("--layers", choices=list(LAYERS), default="all")
    of_throughput.add_argument("--block-size", type=int, default=32)
    of_throughput.add_argument("--prompts", type=int, default=4)
    of_throughput.add_argument("--turns", type=int, default=5)
    of_overlap = commands.add_parser("overlap")
    of_overlap.add_argument("--steps", type=int, default=8)
    of_overlap.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"throughput": throughput, "overlap": overlap}[args.command](args)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if args.command == "throughput":  # one of several settings
        name = f"rank {args.rank}, layers {args.layers}, blocks of {args.block_size}"
        found = known.get("throughput", {}) | {name: found}
    FILE.write_text(json.dumps(known | {args.command: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

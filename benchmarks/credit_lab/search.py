"""Search a learning rate for every arm of the translation game, and play it: `python -m benchmarks.credit_lab.search`.

A rate is chosen by the sum of expected reward and greedy BLEU, both in 0 to 1, on validation sentences and with seeds
that are not played later. Four seeds try three rates, a factor of 2 apart; as long as the best one is at the edge, they
try the next one beyond it. Eight others try the best two again, and all twelve decide. Then 24 seeds play at the best
rate and are scored on test sentences; in the end all arms play at the second best rate too. Every line of `--out` is
one run. Runs that it has are not made again, so a stopped search goes on where it was.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.credit_lab.arms import ARMS
from benchmarks.credit_lab.policies import Policies
from benchmarks.credit_lab.training import Game, judged, train
from benchmarks.records import RESULTS

FILE = RESULTS / "credit_lab_arms.jsonl"
RATES, LEAST, MOST = (5e-4, 1e-3, 2e-3), 6.25e-5, 3.2e-2
PHASES = {"search": (4, 1000), "again": (8, 2000), "final": (24, 0)}  # how many seeds, and the first
PHASES["second"] = PHASES["final"]


class Record:
    """The runs of a file, each a line."""

    def __init__(self, file: Path, game: Game):
        self.file, self.of, self.game = file, game, asdict(game)

    def lines(self) -> list[dict]:
        if not self.file.exists():
            return []
        found = [json.loads(line) for line in self.file.read_text().splitlines()]
        if any(line["game"] != self.game for line in found):
            raise SystemExit(f"{self.file} holds another game and is left as it is; give another --out.")
        return found

    def find(self, phase: str, arm: str, rate: float) -> dict | None:
        key = (phase, arm, rate)
        return next((line for line in self.lines() if (line["phase"], line["arm"], line["rate"]) == key), None)

    def add(self, phase: str, arm: str, rate: float, found: dict) -> dict:
        machine = {"machine": f"{platform.machine()} CPU, 1 thread", "torch": torch.__version__}
        line = {"phase": phase, "arm": arm, "rate": rate, **found, "game": self.game, **machine}
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        return line


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def played(record: Record, phase: str, name: str, rate: float, start: Policies) -> dict:
    """Train an arm at a rate and score it, or read that from the record."""
    if found := record.find(phase, name, rate):
        return found
    began = time.process_time()
    policies, figures = train(start, ARMS[name], rate, record.of, PHASES[phase][1])
    scores = judged(policies, validation=phase in ("search", "again"))
    line = record.add(phase, name, rate, scores | figures | {"cpu_seconds": round(time.process_time() - began, 1)})
    print(phase, name, rate, round(mean(line["reward"]), 4), round(mean(line["bleu"]), 2), line["seconds"], flush=True)
    return line


def quality(line: dict) -> float:
    return mean(line["reward"]) + mean(line["bleu"]) / 100


def searched(record: Record, name: str, start: dict[str, Policies]) -> list[float]:
    """Choose the best rate of an arm and the second best."""

    def tried(phase: str, rate: float) -> float:
        return quality(played(record, phase, name, rate, start[phase]))

    found = {rate: tried("search", rate) for rate in RATES}
    while True:
        best = max(found, key=lambda rate: found[rate])
        beyond = best / 2 if best == min(found) else best * 2 if best == max(found) else None
        if beyond is None or not LEAST <= beyond <= MOST:
            break
        found[beyond] = tried("search", beyond)
    best_two = sorted(found, key=lambda rate: -found[rate])[:2]
    seeds, others = PHASES["search"][0], PHASES["again"][0]
    return sorted(best_two, key=lambda rate: -(seeds * found[rate] + others * tried("again", rate)))


def starts(game: Game, folder: Path | None) -> dict[str, Policies]:
    """Make the starting policies of every phase, or load those that the folder keeps."""
    made = {}
    for seeds, first in set(PHASES.values()):
        kept = folder and folder / f"{first}_{seeds}_{'_'.join(str(x) for x in asdict(game).values())}.pt"
        if kept and kept.exists():
            made[seeds, first] = Policies(seeds, first)
            made[seeds, first].p = torch.load(kept)
        else:
            made[seeds, first] = game.start(seeds, first)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save({name: each.detach() for name, each in made[seeds, first].p.items()}, kept)
    return {phase: made[one] for phase, one in PHASES.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--weights", type=Path, help="keep the starting weights in this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    game = Game()
    record, begin = Record(args.out, game), starts(game, args.weights)
    if not record.find("start", "", 0.0):
        record.add("start", "", 0.0, judged(begin["final"], validation=False))
    for place, phase in enumerate(("final", "second")):
        for name in args.arms:
            rate = searched(record, name, begin)[place]
            played(record, phase, name, rate, begin[phase])


if __name__ == "__main__":
    main()

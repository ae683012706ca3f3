"""Search a learning rate for every arm of the translation game, and play it: `python -m benchmarks.credit_lab.search`.

A rate is chosen by the expected reward on validation sentences, with 4 seeds that are not played later. At first three
rates, a factor of 2 apart; as long as the best one is at the edge, the next one beyond it is tried. Then 24 seeds play
at the best rate and are scored on test sentences. Every line of `--out` is one run. Runs that it has are not made
again, so a stopped search goes on where it was.
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
SEARCHED, PLAYED = (4, 1000), (24, 0)  # how many seeds, and the first


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
    began, first = time.process_time(), (SEARCHED if phase == "search" else PLAYED)[1]
    policies, figures = train(start, ARMS[name], rate, record.of, first)
    scores = judged(policies, validation=phase == "search")
    line = record.add(phase, name, rate, scores | figures | {"cpu_seconds": round(time.process_time() - began, 1)})
    print(phase, name, rate, round(mean(line["reward"]), 4), round(mean(line["bleu"]), 2), line["seconds"], flush=True)
    return line


def searched(record: Record, name: str, start: Policies) -> float:
    """Choose the rate of an arm."""
    tried = {rate: mean(played(record, "search", name, rate, start)["reward"]) for rate in RATES}
    while True:
        best = max(tried, key=lambda rate: tried[rate])
        beyond = best / 2 if best == min(tried) else best * 2 if best == max(tried) else None
        if beyond is None or not LEAST <= beyond <= MOST:
            return best
        tried[beyond] = mean(played(record, "search", name, beyond, start)["reward"])


def starts(game: Game, folder: Path | None) -> dict[str, Policies]:
    """Make the starting policies of both phases, or load those that the folder keeps."""
    result = {}
    for phase, (seeds, first) in {"search": SEARCHED, "final": PLAYED}.items():
        kept = folder and folder / f"{first}_{seeds}_{'_'.join(str(x) for x in asdict(game).values())}.pt"
        if kept and kept.exists():
            result[phase] = Policies(seeds, first)
            result[phase].p = torch.load(kept)
        else:
            result[phase] = game.start(seeds, first)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save({name: each.detach() for name, each in result[phase].p.items()}, kept)
    return result


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
    for name in args.arms:
        rate = searched(record, name, begin["search"])
        played(record, "final", name, rate, begin["final"])


if __name__ == "__main__":
    main()

"""The records of past runs: which of them a command is about, and their differences to a base rule by test row."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.records import RESULTS, read

RUNS = RESULTS / "learning.jsonl"
ITEMS = RESULTS / "learning_items.jsonl"
METRICS = ("bleu", "exact_match", "chrf")
SPLITS = ("test", "test_heldout")


@dataclass(frozen=True)
class Chosen:
    """Select records: a task's runs of one set with so many steps, of these seeds, and the starting checkpoint.

    `steps` None stands for as many as the longest runs have, `seeds` None for all, `set` None for runs without one.
    """

    task: str
    steps: int | None = None
    seeds: Sequence[int] | None = None
    set: str | None = None

    @classmethod
    def of(cls, args):
        """Take the selection from a command line."""
        return cls(args.task, args.steps, args.seeds, args.set)

    def lines(self, file):
        """Read the selected records of a file."""
        records = [record for record in read(file) if record["task"] == self.task]
        start = [record for record in records if record["steps"] == 0]
        trained = [record for record in records if record["steps"] and record.get("set") == self.set]
        steps = self.steps or max((record["steps"] for record in trained), default=0)
        trained = [record for record in trained if record["steps"] == steps]
        return start + [record for record in trained if self.seeds is None or record["seed"] in self.seeds]

    def runs(self):
        """Read one record a run, splits that several commands scored put together."""
        found = {}
        for record in self.lines(RUNS):
            found.setdefault((record["credit"], record["seed"]), record).update(record)
        return list(found.values())


def gaps(args):
    """Yield every rule with its differences to the base in sentence BLEU: test row → one per seed that both have."""
    scores = {(r["credit"], r["seed"]): r["bleu"] for r in Chosen.of(args).lines(ITEMS)}
    for rule in sorted({credit for credit, _ in scores} - {"none", args.base}):
        seeds = sorted({s for c, s in scores if c == rule} & {s for c, s in scores if c == args.base})
        if seeds:
            rows = scores[args.base, seeds[0]]
            yield rule, {i: [scores[rule, s][i] - scores[args.base, s][i] for s in seeds] for i in rows}

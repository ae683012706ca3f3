"""Print the table of all arms of the translation game: `python -m benchmarks.credit_lab.table [FILE]`."""

import argparse
import json
from pathlib import Path

from benchmarks.credit_lab.arms import KINDS
from benchmarks.credit_lab.search import FILE, mean
from leaf.evaluation.bootstrap import mean_interval

HEAD = (
    "arm", "rate", "expected reward", "minus GRPO", "greedy BLEU", "minus GRPO", "equal rewards, all / last steps",
    "entropy", "completions", "tokens", "held back", "CPU s",
)  # fmt: skip
SAME = ("arm", "5e-4: reward minus GRPO", "BLEU minus GRPO", "1e-3: reward minus GRPO", "BLEU minus GRPO")


def shown(values: list[float], digits: int, *, signed: bool = False) -> str:
    middle, half = mean_interval(values)
    return f"{middle:{'+' if signed else ''}.{digits}f} ± {half:.{digits}f}"


def minus(line: dict, other: dict, score: str) -> list[float]:
    """Pair two runs by seed."""
    return [a - b for a, b in zip(line[score], other[score], strict=True)]


def row(line: dict, grpo: dict) -> list[str]:
    itself = line is grpo
    return [
        line["arm"],
        f"{line['rate']:g}",
        shown(line["reward"], 4),
        "" if itself else shown(minus(line, grpo, "reward"), 4, signed=True),
        shown(line["bleu"], 2),
        "" if itself else shown(minus(line, grpo, "bleu"), 2, signed=True),
        f"{100 * line['flat']:.0f} / {100 * line['flat_last']:.0f} %",
        f"{mean(line['entropy']):.3f}",
        f"{line['completions']:,}",
        f"{line['tokens']:,}",
        f"{100 * line['clip_fraction']:.1f} %" if line["clip_fraction"] else "",
        f"{line['cpu_seconds']:.0f}",
    ]


def tables(lines: list[dict]) -> str:
    """Write one table for each kind of arm, best expected reward first; then arms at equal rates, and the searches."""
    final = {line["arm"]: line for line in lines if line["phase"] == "final"}
    start = next(line for line in lines if line["phase"] == "start")
    text = [f"Start: expected reward {shown(start['reward'], 4)}, greedy BLEU {shown(start['bleu'], 2)}.", ""]
    for kind, arms in KINDS.items():
        played = sorted((final[name] for name in arms if name in final), key=lambda line: -mean(line["reward"]))
        played = played if kind == "rule" else [final["grpo"], *played]
        text += _table(kind, HEAD, [row(line, final["grpo"]) for line in played])
    text += _table("equal rates", SAME, equal_rates(lines, list(final)))
    return "\n".join(text + _table("search", ("arm", "rates tried: expected reward, greedy BLEU"), tried(lines, final)))


def equal_rates(lines: list[dict], names: list[str]) -> list[list[str]]:
    """Compare arms with GRPO at the rates that 24 seeds played, best or second best."""
    runs = {(line["arm"], line["rate"]): line for line in lines if line["phase"] in ("final", "second")}
    rows = []
    by_reward = {name: max(mean(line["reward"]) for key, line in runs.items() if key[0] == name) for name in names}
    for name in sorted(names, key=lambda name: -by_reward[name]):
        cells = []
        for rate in (5e-4, 1e-3):
            one, grpo = runs.get((name, rate)), runs.get(("grpo", rate))
            if one is None or grpo is None or name == "grpo":
                cells += ["", ""]
            else:
                cells += [shown(minus(one, grpo, score), n, signed=True) for score, n in (("reward", 4), ("bleu", 2))]
        rows += [[name, *cells]] if any(cells) else []
    return rows


def tried(lines: list[dict], final: dict[str, dict]) -> list[list[str]]:
    """List what four seeds found at each rate, and behind a slash what eight others did."""
    rows = []
    for name in final:
        own = [line for line in lines if line["arm"] == name]
        again = {line["rate"]: f" / {_both(line)}" for line in own if line["phase"] == "again"}
        first = sorted((line for line in own if line["phase"] == "search"), key=lambda line: line["rate"])
        cells = [f"{line['rate']:g}: {_both(line)}{again.get(line['rate'], '')}" for line in first]
        rows.append([name, "; ".join(cells)])
    return rows


def _both(line: dict) -> str:
    return f"{mean(line['reward']):.4f}, {mean(line['bleu']):.2f}"


def _table(title: str, head, rows: list[list[str]]) -> list[str]:
    return [f"**{title}**", "", *(_line(cells) for cells in (head, ["---"] * len(head), *rows)), ""]


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    print(tables([json.loads(line) for line in parser.parse_args().file.read_text().splitlines()]))


if __name__ == "__main__":
    main()

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
    """Write one table for each kind of arm, best expected reward first, and what the searches found."""
    final = {line["arm"]: line for line in lines if line["phase"] == "final"}
    start = next(line for line in lines if line["phase"] == "start")
    grpo = final["grpo"]
    text = [f"Start: expected reward {shown(start['reward'], 4)}, greedy BLEU {shown(start['bleu'], 2)}.", ""]
    for kind, arms in KINDS.items():
        played = sorted((final[name] for name in arms if name in final), key=lambda line: -mean(line["reward"]))
        if kind != "rule":
            played = [grpo, *played]
        text += [f"**{kind}**", "", _line(HEAD), _line(["---"] * len(HEAD))]
        text += [_line(row(line, grpo)) for line in played] + [""]
    text += ["**search**", "", _line(("arm", "rates tried: expected reward, greedy BLEU")), _line(["---"] * 2)]
    for name in final:
        tried = sorted(
            (one for one in lines if (one["phase"], one["arm"]) == ("search", name)), key=lambda x: x["rate"]
        )
        each = "; ".join(f"{one['rate']:g}: {mean(one['reward']):.4f}, {mean(one['bleu']):.2f}" for one in tried)
        text.append(_line((name, each)))
    return "\n".join(text)


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    print(tables([json.loads(line) for line in parser.parse_args().file.read_text().splitlines()]))


if __name__ == "__main__":
    main()

"""The results as markdown."""

from collections.abc import Callable
from typing import Any

from benchmarks.step.bench import ARMS


def tables(cells: list[dict[str, Any]]) -> str:
    """Return the results as markdown."""
    cells = sorted(cells, key=lambda c: (c["prompt_tokens"], c["length"], c["completions"]))
    parts = [_table("Seconds: sampler / update / step (memory: peak of the step, MB)", cells, _seconds)]
    parts.append(_table("Times slower than leaf: sampler / update / step (peak memory of the step)", cells, _slower))
    parts += [_floor_table(cells), profile_table(cells)]
    chosen = [c for c in cells if c["prompt_tokens"] == 300 and c["length"] == 24]
    parts.append(_growth_table("Step at K over step at K = 8 (P = 300, R = 24)", chosen, "completions", 8))
    chosen = [c for c in cells if c["completions"] == 8 and c["length"] == 24]
    parts.append(_growth_table("Step at P over step at P = 100 (K = 8, R = 24)", chosen, "prompt_tokens", 100))
    return "\n\n".join(part for part in parts if part)


def _rows(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _table(title: str, cells: list[dict[str, Any]], show: Callable[[dict[str, Any], str], str]) -> str:
    head = ["P", "K", "R", "distinct", *ARMS]
    return _rows(
        title, head, [[*key(c), str(c["distinct_over_total"]), *(show(c, arm) for arm in ARMS)] for c in cells]
    )


def key(cell: dict[str, Any]) -> list[str]:
    return [str(cell[name]) for name in ("prompt_tokens", "completions", "length")]


def _seconds(cell: dict[str, Any], arm: str) -> str:
    record = cell["arms"].get(arm)
    if record is None:
        return "not run"
    if "does_not_fit" in record:
        return f"does not fit ({record['does_not_fit']['estimated_gb']:.0f} GB)"
    stages = " / ".join(f"{record[f'{stage}_s']['median']:.2f}" for stage in ("sample", "update", "step"))
    return f"{stages} ({record['peak_step_mb']:.0f})"


def _slower(cell: dict[str, Any], arm: str) -> str:
    if arm not in cell.get("leaf_against", {}):
        return "1" if arm == "leaf" else "–"
    ratio = cell["leaf_against"][arm]
    return f"{ratio['sample']} / {ratio['update']} / {ratio['step']} ({ratio['peak_step']})"


def _floor_table(cells: list[dict[str, Any]]) -> str:
    """Write leaf's update and step over their floors (benchmarks.step.floor.FLOOR)."""
    names = {
        "packed tokens": "packed_tokens",
        "TFLOP": "tflop",
        "with attention": "attention_tflop",
        "GFLOP/s": "gflop_per_s",
        "floor s": "floor_s",
        "update s": "update_s",
        "update / floor": "update_over_floor",
        "/ with attention": "update_over_floor_with_attention",
        "/ shared prefill": "update_over_shared_floor",
        "step / floor": "step_over_floor",
        "step / shared": "step_over_shared_floor",
        "MB a token": "peak_update_mb_per_token",
    }
    rows = []
    for cell in (cell for cell in cells if "floor" in cell):
        floor = cell["floor"] | {"update_s": cell["arms"]["leaf"]["update_s"]["median"]}
        shares = {arm: record.get("update_flop_utilisation") for arm, record in cell["arms"].items()}
        used = ", ".join(f"{arm} {share:.0%}" for arm, share in shares.items() if share is not None)
        # Cells of before the second floor lack it.
        rows.append([*key(cell), *(str(floor.get(name, "–")) for name in names.values()), used or "–"])
    head = ["P", "K", "R", *names, "utilisation"]
    return _rows("Update and step of leaf against their arithmetic floors", head, rows) if rows else ""


def profile_table(cells: list[dict[str, Any]]) -> str:
    """Write what share of leaf's update goes where (benchmarks.step.profile)."""
    found = [cell for cell in cells if "profile" in cell]
    if not found:
        return ""
    kinds = list(found[0]["profile"]["shares"])
    rows = [
        [*key(c), f"{c['profile']['seconds']:.2f}", *(f"{c['profile']['shares'][kind]:.0%}" for kind in kinds)]
        for c in found
    ]
    return _rows("Where leaf's update spends its time", ["P", "K", "R", "seconds", *kinds], rows)


def _growth_table(title: str, cells: list[dict[str, Any]], name: str, origin: int) -> str:
    base = next((c for c in cells if c[name] == origin), None)
    if base is None or len(cells) < 2:
        return ""

    def growth(cell: dict[str, Any], arm: str) -> str:
        pair = [c["arms"].get(arm, {}).get("step_s", {}).get("median") for c in (cell, base)]
        return "–" if None in pair else f"{pair[0] / pair[1]:.2f}"

    return _rows(title, [name, *ARMS], [[str(c[name]), *(growth(c, arm) for arm in ARMS)] for c in cells])

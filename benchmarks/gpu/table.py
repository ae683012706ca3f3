"""The record of benchmarks.gpu as markdown."""

from typing import Any

_NO_FIGURES = ("at", "error")


def table(record: dict[str, Any]) -> str:
    """Write every part with its machine and figures; what failed is said in its place."""
    blocks = []
    for name, part in record["parts"].items():
        lines = [f"### {name}", ""]
        result = part.get("result", {})
        about = [f"{key} {value}" for key, value in result.items() if key != "entries" and value is not None]
        if about:
            lines += [", ".join(about) + ".", ""]
        if "error" in part:
            last = part.get("said", "").strip().splitlines()
            lines += [f"**Failed: {part['error']}.**" + (f" It said last: `{last[-1][:300]}`" if last else ""), ""]
        lines += _rows(result.get("entries", []))
        blocks.append("\n".join(lines).rstrip())
    return "\n\n".join(blocks)


def _rows(entries: list[dict[str, Any]]) -> list[str]:
    flat = [_flat(entry) for entry in entries]
    head = list(dict.fromkeys(key for entry in flat for key in entry if key not in _NO_FIGURES))
    if not head:
        return []
    lines = ["| " + " | ".join([*head, "error"]) + " |", "|" + " --- |" * (len(head) + 1)]
    for entry in flat:
        error = " ".join(str(entry.get("error", "")).replace("|", "/").split())[:200]
        lines.append("| " + " | ".join([*(_shown(entry.get(key)) for key in head), error]) + " |")
    return lines


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """Lift figures out of nested parts; of the floor those that say how far the arm is from it."""
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "floor":
            flat |= {name: value[name] for name in ("update_over_floor_with_attention", "step_over_floor")}
        elif isinstance(value, dict):
            flat |= {f"{key} {name}": one for name, one in value.items()}
        else:
            flat[key] = value
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

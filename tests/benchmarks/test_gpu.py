"""benchmarks.gpu on a CPU at small sizes: every part measures, and one that fails takes no other along."""

import json
import sys
from typing import Any

import pytest
import torch

from benchmarks.gpu import equality as equality_part
from benchmarks.gpu.part import Result, about, run
from benchmarks.gpu.running import run_parts
from benchmarks.gpu.table import table

CPU = torch.device("cpu")


@pytest.fixture
def result(tmp_path):
    return Result(tmp_path / "part.json", about(CPU, 1.0))


def entries(name, result) -> list[dict[str, Any]]:
    """Run a part at small sizes and return what it wrote."""
    run(name, CPU, True, result)
    written = json.loads(result.file.read_text())
    assert [entry["at"] for entry in written["entries"] if "error" in entry] == []
    return written["entries"]


def test_the_fast_paths_are_compared_with_copies(result, monkeypatch):
    monkeypatch.setattr(equality_part, "MODELS", ())
    single, half = entries("equality", result)
    assert single["equal"]
    assert half["equal"]
    assert single["layout"] == "tree"
    assert 0 < single["gradient"] < 1e-4 < half["gradient"]


def test_a_wrong_scorer_is_not_equal(result, monkeypatch):
    right = equality_part.score

    def wrong(policy, prompts, trees):
        scores = right(policy, prompts, trees)
        return scores if policy.layout == "copies" else type(scores)([v * 1.05 for v in scores.log_probs], [], 0, 0)

    monkeypatch.setattr(equality_part, "score", wrong)
    found = equality_part.compare("audioflamingo3", CPU, torch.float32)
    assert not found["equal"]
    assert found["gradient"] == pytest.approx(0.05, rel=0.01)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_the_mask_shows(result):
    (found,) = entries("attention", result)
    assert found["largest_difference"] < 1e-5
    assert found["row"] > 40
    assert found["sdpa_ms"] > 0
    assert found["flex_ms"] > 0
    assert not found["backward"]


def test_a_step_of_granites_shape_is_measured(result):
    with_checkpoints, without = entries("granite", result)
    assert with_checkpoints["prompt_tokens"] == 20 + 100 // 15 * 3 + 3  # 100 frames, windows of 15 make 3 each
    assert without["peak_gb"] > 0
    assert without["measured_mb_per_token"] > 0


def test_a_step_is_measured_in_three_ways(result):
    leaf, stock, published = entries("step_1b", result)
    assert leaf["floor"]["tflop"] >= 0
    assert 0 <= leaf["update_flop_utilisation"] < 1
    for other in (stock, published):
        assert other["gradient_difference"]["whole"] < 1e-4  # float32: the three have the same gradient
    assert published["sample_s"] is None
    assert "update_over_floor_with_attention" in table({"parts": {"step_1b": {"result": result.content}}})


def test_an_error_in_one_measurement_is_noted_and_the_next_goes_on(result):
    def fails():
        raise RuntimeError("CUDA error: as if")

    result.add({"size": 1}, fails)
    result.add({"size": 2}, lambda: {"ms": 3.0})
    assert [entry.get("error") for entry in result.failed] == ["RuntimeError: CUDA error: as if"]
    shown = table({"parts": {"some": {"result": result.content}}})
    assert "| 1 | " in shown
    assert "CUDA error: as if" in shown
    assert "| 2 | " in shown


def test_a_part_that_fails_or_hangs_takes_no_other_along(tmp_path):
    write = "import json, sys; json.dump({'entries': [{'x': 1}]}, open(sys.argv[1], 'w'))"
    code = {
        "raises": "raise SystemExit('no such GPU')",
        "hangs": f"{write}; sys.stdout.flush(); import time; time.sleep(60)",
        "says nothing": "",
        "works": write,
        "comes late": write,
    }
    commands = {name: [sys.executable, "-c", one] for name, one in code.items()}
    commands["comes late"] = [sys.executable, "-c", write]
    bounds = dict.fromkeys(code, 30.0) | {"hangs": 3.0}
    run_parts({name: commands[name] for name in list(code)[:-1]}, bounds, 60, tmp_path / "gpu.json")
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["raises"]["error"] == "ended with 1"
    assert "no such GPU" in parts["raises"]["said"]
    assert parts["hangs"]["error"] == "stopped after 3 s"
    assert parts["hangs"]["result"] == {"entries": [{"x": 1}]}  # what it had
    assert parts["says nothing"]["error"] == "wrote no result"
    assert parts["works"]["result"] == {"entries": [{"x": 1}]}
    assert "error" not in parts["works"]
    shown = table({"parts": parts})
    assert "**Failed: ended with 1.** It said last: `no such GPU`" in shown
    run_parts({"comes late": commands["comes late"]}, bounds, 0, tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["comes late"] == {
        "error": "not run: no time was left"
    }

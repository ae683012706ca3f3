"""Cost curves: exponents by hand, and every curve at small sizes."""

import json

import pytest

from benchmarks.curves import exponent, process_curve, row_curve, step_curves, table
from benchmarks.step.bench import Cell
from tests.benchmarks.test_step import bench  # noqa: F401
from tests.helpers.tiny import rows


def test_exponents_by_hand():
    assert exponent([1, 2, 4], [3, 6, 12]) == {"exponent": 1.0, "range": [1.0, 1.0]}
    assert exponent([1, 2, 4], [1, 4, 16])["exponent"] == 2.0
    found = exponent([1, 2, 4], [1, 1, 2])
    assert found["range"] == [0.0, 1.0]
    assert found["exponent"] == pytest.approx(0.5)


def test_curves_of_a_step_change_one_size_at_a_time(bench, capsys):  # noqa: F811
    made = step_curves(bench, {"completions": [2, 4], "length": [3, 6]}, Cell(0, 2, 3), 1, lambda tokens: rows(2))
    assert {axis: curve["sizes"] for axis, curve in made.items()} == {"completions": [2, 4], "length": [3, 6]}
    for curve in made.values():
        assert set(curve["growth"]) == {"sample", "update", "step"}
        for point in zip(*(curve["seconds"][stage] for stage in ("sample", "update", "step")), strict=True):
            assert point[2] >= point[0] + point[1] > 0
    assert "| K = 2, 4 | sample |" in table(made)


def test_a_step_costs_the_same_at_any_number_of_rows():
    made = row_curve([2000, 4000, 8000, 16000])
    assert made["growth"]["other step"]["exponent"] < 0.5
    assert made["growth"]["start"]["exponent"] < 1.6


def test_processes_are_read_from_their_record(tmp_path):
    file = tmp_path / "scaling.json"
    assert process_curve(file) is None
    file.write_text(json.dumps({"seconds": {"step": {"1": [4.0, 4.0, 5.0], "2": [2.0, 2.0]}}}))
    made = process_curve(file)
    assert made is not None
    assert made["growth"]["step"]["exponent"] == -1.0

"""Commands that only look run no code of a recipe or run directory that somebody sent, unless the user trusts it."""

import json

import pytest
from typer.testing import CliRunner

from leaf.commands.main import app
from tests.commands.test_cli import project  # noqa: F401  (a fixture)
from tests.helpers.recorded import REWARDS, WORDS, record, write_run


@pytest.fixture
def mark(tmp_path):
    """A file that is there once the code of the recipe ran."""
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()\ndef mine(completions):\n    return [0.0 for _ in completions]\n"
    (tmp_path / "sent.py").write_text(code)
    return mark


def ran(mark, *arguments):
    """Tell whether a command ran the code, and what it said."""
    mark.unlink(missing_ok=True)
    result = CliRunner().invoke(app, list(arguments))
    return mark.exists(), f"{result.output}{result.exception or ''}"


@pytest.mark.parametrize("key", ["plugins=[sent.py]", "rewards=[sent.py:mine]", "best_metric=sent.py:mine"])
def test_doctor_runs_no_code_of_a_recipe(project, mark, key):  # noqa: F811
    did, said = ran(mark, "doctor", "rl.yaml", key)
    assert not did
    assert "sent.py" in said
    assert "--trust" in said
    assert "fails" not in said
    did, said = ran(mark, "doctor", "rl.yaml", key, "--trust")
    assert did
    assert "unsure" not in said


def test_doctor_runs_no_code_of_a_checkpoint(project, mark):  # noqa: F811
    config = json.loads((project / "model/config.json").read_text())
    config |= {"model_type": "sent", "auto_map": {"AutoConfig": "sent.Sent"}}
    (project / "model/config.json").write_text(json.dumps(config))
    (project / "sent.py").rename(project / "model/sent.py")
    did, said = ran(mark, "doctor", "rl.yaml", "trust_remote_code=true")
    assert not did
    assert "the checkpoint's own: not run" in said


def test_report_and_tree_run_no_code_of_a_run(project, mark):  # noqa: F811
    write_run(project / "sent", [record(WORDS, REWARDS)], plugins=["sent.py"], task="theirs")
    (project / "sent/metrics.jsonl").write_text('{"step": 1, "reward_mean": 0.5}\n')
    did, said = ran(mark, "report", "sent", "--output", "page.html")
    assert not did
    assert "the report is in page.html" in said
    assert "give --trust" in (project / "page.html").read_text()
    did, said = ran(mark, "tree", "sent", "--credit", "theirs")
    assert not did
    assert "sent.py is code that the recipe names" in said
    assert ran(mark, "tree", "sent", "--credit", "theirs", "--trust")[0]

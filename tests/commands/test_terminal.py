"""What the commands print: whole words at every width, and how they read `~`."""

import io
import re
from importlib.metadata import version

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from leaf.commands import terminal
from leaf.commands.main import app
from leaf.config import AlignConfig, LeafConfig, SftConfig
from leaf.data import load
from leaf.errors import DataError


@pytest.fixture
def screen(monkeypatch):
    """Make the console a terminal of so many columns; returns what was printed on it."""

    def of(width):
        console = Console(
            file=io.StringIO(), force_terminal=True, width=width, soft_wrap=True, highlight=False, markup=False
        )
        monkeypatch.setattr(terminal, "console", console)
        return lambda: re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]

    return of


def words(text):
    return re.sub("[┃│━┏┓┗┛┡┩┳┻╇┴┬├┤┼─└┘]", " ", text).split()


def a_table():
    table = Table("key", "default", "meaning")
    table.add_row("  prompts_per_rollout", "[AUDIO]", "the placeholder <audio_soft_token> in front of a prompt")
    table.add_row("  other", "", "")
    return table


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_tables_keep_every_word_whole(screen, width):
    printed = screen(width)
    terminal.show(a_table())
    wanted = "key default meaning prompts_per_rollout [AUDIO] the placeholder <audio_soft_token> in front of a prompt"
    assert sorted(words(printed())) == sorted([*wanted.split(), "other"])
    assert max(map(len, printed().splitlines())) <= max(width, 62)


def test_a_pipe_gets_a_row_in_a_line(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=file, width=40))
    terminal.show(a_table())
    assert "the placeholder <audio_soft_token> in front of a prompt" in file.getvalue()


def test_lines_break_between_words_and_paths_stay_whole():
    path = "/a-rather/long/path/with-hyphens/and [brackets]/file.yaml"
    text = f"        Use {path} once\nstep 1/2  reward 0.5  kl 0.1"
    lines = terminal.wrapped(text, 30).split("\n")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert "/a-rather/long/path/with-hyphens/and" in " ".join(lines)
    assert lines[1].startswith(" " * 8)
    assert lines[-1] == "step 1/2  reward 0.5  kl 0.1"


def test_a_terminal_gets_wrapped_lines_and_a_pipe_whole_ones(screen):
    printed = screen(12)
    terminal.say("one two three four")
    terminal.say("[red]not markup[/red]")
    assert printed() == "one two\nthree four\n[red]not\nmarkup[/red]\n"
    pipe = Console(file=io.StringIO(), width=12, soft_wrap=True)
    terminal.say("one two three four", pipe)
    assert pipe.file.getvalue() == "one two three four\n"  # type: ignore[attr-defined]


def test_the_help_of_a_command_is_whole_at_any_width():
    for width in (40, 80):
        shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": str(width)}, terminal_width=width).output
        assert "..." not in shown.replace("[ARGS]...", "")
        assert "curves, trees, forks and evaluations: one HTML file that needs no server." in " ".join(shown.split())
        shown = CliRunner().invoke(app, ["evaluate", "--help"], terminal_width=width).output
        assert "…" not in shown
        assert "bleu,exact_match,chrf" in shown.replace("\n", "").replace(" ", "")


def test_the_version_and_the_completion():
    assert CliRunner().invoke(app, ["--version"]).output == f"leaf {version('leaf-speech')}\n"
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


def test_home_is_found_wherever_a_path_may_be(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = [
        "~/a.yaml",
        "output_dir=~/x",
        "--out=~/s",
        "mine=~/best",
        "~",
        "a~/b",
        "note=a ~/b",
        "x=~y",
        "~no-such-user/a",
    ]
    wanted = ["/home/me/a.yaml", "output_dir=/home/me/x", "--out=/home/me/s", "mine=/home/me/best", "/home/me"]
    assert terminal.with_home(given) == [*wanted, "a~/b", "note=a ~/b", "x=~y", "~no-such-user/a"]


def test_home_is_found_in_recipes_and_from_python(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path)
    config = LeafConfig(
        model="~/m", task="~/t.jsonl", output_dir="~/x", projector="~/p", plugins=["~/a.py"], rewards=["~/r.py:f"]
    )
    paths = (config.model, config.task, config.output_dir, config.projector, *config.plugins, *config.rewards)
    assert paths == tuple(f"{home}/{name}" for name in ("m", "t.jsonl", "x", "p", "a.py", "r.py:f"))
    assert SftConfig(extra_tasks=["~/t.csv"]).extra_tasks == [f"{home}/t.csv"]
    with pytest.raises(DataError, match=re.escape(f"{home}/none.jsonl")):
        load("~/none.jsonl", "train")


def test_every_key_that_is_a_path_by_its_help_is_declared_as_one():
    for stage in (LeafConfig, SftConfig, AlignConfig):
        for name, field in stage.__dataclass_fields__.items():
            help_ = field.metadata["help"]
            names_files = any(word in help_ for word in ("directory", "file", "path", "tasks"))
            assert field.metadata["path"] == (names_files and name != "stage"), name

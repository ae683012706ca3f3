"""The tree of a recorded group and the live view: exact text, harmless text, every width."""

import io
import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.tree import Tree
from typer.testing import CliRunner

from leaf.commands import main as cli
from leaf.config import AlignConfig, LeafConfig, to_dict
from leaf.errors import ConfigError, LeafError, RunError
from leaf.model.sampling import Group
from leaf.report import terminal
from leaf.report.drawn_group import pieces
from leaf.runs.directory import RunDirectory
from leaf.train.records import group_record

# The group of docs/method.md, worked by hand there.
WORDS = [
    ["press", " one", " to", " leave", "</s>"],
    ["press", " one", " to", " exit", "</s>"],
    ["press", " two", " to", " leave", "</s>"],
    ["dial", " one", "</s>"],
]
REWARDS = [1.0, 0.6, 0.2, 0.2]
SURPRISAL = [[0.1, 0.3, 0.1, 0.9, 0.1], [0.1, 0.3, 0.1, 1.2, 0.1], [0.1, 1.6, 0.2, 0.4, 0.1], [2.5, 0.3, 0.2]]


def record(words, rewards, surprisal=None, *, advantages=None, truncated=None, **changes):
    """A group as the trainer records it, from words in place of token ids."""
    vocabulary = sorted({word for row in words for word in row})
    width = max(map(len, words), default=0)
    lengths = torch.tensor([len(row) for row in words])
    tokens = torch.tensor([[*map(vocabulary.index, row), *[0] * (width - len(row))] for row in words], dtype=torch.long)
    surprisal = surprisal or [[0.5] * len(row) for row in words]
    nats = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in surprisal], dtype=torch.float64)
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=lambda ids: [vocabulary[i] for i in ids],
        batch_decode=lambda rows, **_: ["".join(vocabulary[i] for i in ids if vocabulary[i] != "</s>") for ids in rows],
    )
    shape = (len(words), width)
    group = Group(
        None,  # type: ignore[arg-type]
        tokens.reshape(shape),
        lengths,
        nats.reshape(shape),
        torch.tensor([False] * len(words) if truncated is None else truncated),
    )
    row = {"id": "train-1", "prompt": "How do I leave?", "audio": ["a.opus"], "text": None, "reference": "press one"}
    earned = torch.tensor([torch.nan if r is None else r for r in rewards], dtype=torch.float64)
    given_ = torch.zeros(shape) if advantages is None else torch.tensor(advantages)
    # What was written and read again, not what was in memory.
    return json.loads(json.dumps({"step": 1, **group_record(row | changes, group, earned, given_, tokenizer)}))


def shown(view, *, width=None):
    """What a pipe gets, or with a width what a terminal of that width gets."""
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor", "width": width} if width else {}
    terminal.print_group(Console(file=file, highlight=False, markup=False, **options), view)
    return file.getvalue()


def plain(text):
    """Without the colours that rich adds."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def tree_of(text):
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("root"))
    return lines[start : lines.index("", start)]


def write_run(path, records, **recipe):
    path.mkdir()
    config = LeafConfig(output_dir=str(path), **recipe)
    (path / "recipe.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (path / "groups.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return RunDirectory(path)


def command(*arguments):
    result = CliRunner().invoke(cli.app, ["tree", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_worked_example_is_drawn_with_its_nodes_values_and_credit():
    text = shown(terminal.group_view(record(WORDS, REWARDS, SURPRISAL), LeafConfig(), "leaf"))
    assert tree_of(text) == [
        "root  n 4  V̂ 0.500",
        "├── press┃  n 3  V̂ 0.600  A +0.17",
        "│   ├──  one to┃  n 2  V̂ 0.800  A +0.70",
        "│   │   ├──  leave■  A +1.47  reward 1.000  #0",
        "│   │   └──  exit■  A -0.31  reward 0.600  #1",
        "│   └──  two to┃ leave■  A -1.64  reward 0.200  #2",
        "└── dial┃ one■  A -1.42  reward 0.200  #3",
    ]
    assert "boundaries  1, 3\n" in text
    assert "full at ±1.64" in text


def test_recorded_advantages_and_another_rule_on_the_same_tree():
    recorded = [[0.5] * 5, [-0.25] * 5, [0.0] * 5, [0.0] * 5]
    one = record(WORDS, REWARDS, SURPRISAL, advantages=recorded)
    text = shown(terminal.group_view(one, LeafConfig()))
    assert "credit      as recorded (recipe: leaf)" in text
    assert "├── press┃  n 3  V̂ 0.600  A -0.25 to +0.50" in text
    text = shown(terminal.group_view(one, LeafConfig(), "grpo"))
    assert "credit      grpo, computed on the recorded rollouts" in text
    # (1 - 0.5) / std of (1, 0.6, 0.2, 0.2) = 0.5 / 0.38297
    assert "leave■  A +1.31  reward 1.000  #0" in text
    assert "press┃  n 3  V̂ 0.600  A -0.78 to +1.31" in text


def test_boundaries_follow_the_options_of_the_run():
    one = record(WORDS, REWARDS, SURPRISAL)
    assert "boundaries  1\n" in shown(terminal.group_view(one, LeafConfig(credit_options={"max_boundaries": 1})))
    assert "boundaries  1, 3\n" in shown(terminal.group_view(one, LeafConfig(credit_options={"terms": "global"})))
    # The published recipe spells the defaults out: the recorded boundaries stand, whatever rounding did to surprisal.
    spelt = LeafConfig(credit_options={"max_boundaries": 2, "min_prefix": 1})
    assert "boundaries  2\n" in shown(terminal.group_view({**one, "boundaries": [2]}, spelt))
    none = shown(terminal.group_view(one, LeafConfig(credit_options={"max_boundaries": 0})))
    assert "boundaries  none\n" in none
    assert "┃" not in "".join(tree_of(none))


def test_unscored_truncated_empty_equal_and_nested_completions():
    words = [["a", "b"], ["a", "b", "c"], [], ["a", "b"], ["z"]]
    one = record(words, [0.5, None, 0.5, 0.5, 0.5], truncated=[True, False, False, True, False])
    text = shown(terminal.group_view(one, LeafConfig(), "leaf"))
    assert tree_of(text) == [
        "root  n 3  V̂ 0.500",
        "├── (empty)  reward 0.500  #2",
        "├── a┃  n 2  V̂ 0.500  A 0.00",
        "│   └── b  A 0.00",
        "│       ├── (ends here)  reward 0.500  truncated  #0 #3",
        "│       └── ■  A 0.00  reward unscored  #1",
        "└── ■  A 0.00  reward 0.500  #4",
    ]
    assert "A advantage, 0 everywhere, for want of rewards that differ." in text


@pytest.mark.parametrize(
    ("tokens", "completion", "wanted"),
    [
        (["It", "Ġcosts", "ĠâĤ", "¬", "5", "<|im_end|>"], "It costs €5", ["It", " costs", " ", "€", "5", "<|im_end|>"]),
        (["▁It", "▁is", "<0xC3>", "<0xA9>", "</s>"], "It isé", [" It", " is", "", "é", "</s>"]),
        (["Ã", "¤"], "Ã¤", ["Ã", "¤"]),  # SentencePiece that happens to look like bytes
        (["Ã", "¤"], "ä", ["", "ä"]),
        (["âĤ"], "", ["�"]),  # cut off inside a character
        ([], "", []),
    ],
)
def test_tokens_are_spelt_as_their_vocabulary_does(tokens, completion, wanted):
    assert pieces(tokens, completion) == wanted


EVIL = "[red]x[/] [/red] [link=file:///a]y \x1b[31m\x1b]0;title\x07 \x9b2J \r\n\t \u202eabc\u2028 \ud800 \x7f"


def test_markup_and_control_characters_are_text(tmp_path):
    words = [["[red]", "\x1b[2J", "\u202e", "</s>"], ["[/]", "\x9b2J\x07", "</s>"]]
    one = record(words, [1.0, 0.0], id=EVIL, prompt=EVIL, reference=EVIL, text=EVIL, audio=["[/]\x1b.wav"])
    write_run(tmp_path / "run", [one])
    for text in (command(tmp_path / "run"), shown(terminal.group_view(one, LeafConfig()))):
        assert not [c for c in text if c in "\x1b\x07\x9b\r\t\u202e\u2028\x7f" or 0xD800 <= ord(c) <= 0xDFFF]
        assert (
            "[red]x[/] [/red] [link=file:///a]y ␛[31m␛]0;title␇ \\u{9b}2J ␍␊␉ \\u{202e}abc\\u{2028} \\u{d800}" in text
        )
        assert "[red]┃␛[2J\\u{202e}┃■" in text
    coloured = shown(terminal.group_view(one, LeafConfig(), "grpo"), width=80)
    # The only escapes are rich's own colours: none clears the screen, sets a title or makes a link.
    assert set(re.findall(r"\x1b(?!\[[0-9;]*m).?", coloured)) == set()


def test_visible_keeps_what_it_is_told_and_all_that_is_harmless():
    assert terminal.visible("a\nb\tc", keep="\n") == "a\nb␉c"
    harmless = "naïve 中文 🙂 नमस्ते שלום [bold]"
    assert terminal.visible(harmless) == harmless


def test_an_error_with_escapes_reaches_the_terminal_as_text(monkeypatch, capsys):
    def fail():
        raise LeafError("the reward function said [red] \x1b[31m and\nmore")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "leaf: the reward function said [red] ␛[31m and\nmore\n"
    cli._say("left unscored: [/] \x1b]0;title\x07")
    assert capsys.readouterr().out == "left unscored: [/] ␛]0;title␇\n"


groups = st.lists(st.lists(st.sampled_from(["a", " b", "c", "\x1b[1m"]), max_size=12), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(groups, st.integers(0, 4), st.sampled_from([None, "leaf", "grpo", "tempo", "spo"]), st.integers(1, 60))
def test_any_group_is_drawn_whole_at_any_width(words, boundaries, credit, width):
    rewards = [None if len(row) == 5 else len(row) / 10 for row in words]
    one = record(words, rewards, truncated=[len(row) % 2 == 0 for row in words])
    view = terminal.group_view(one, LeafConfig(credit_options={"max_boundaries": boundaries}), credit)
    text = "\n".join(tree_of(shown(view)))
    assert sorted(map(int, re.findall(r"#(\d+)", text))) == list(range(len(words)))
    assert "\x1b" not in text
    narrow = plain(shown(view, width=width))
    assert "\x1b" not in narrow
    lines = [line.replace("\u0302", "") for line in narrow.splitlines()]
    tree = next(part for part in view.renderables if isinstance(part, Tree))
    assert max(map(len, lines)) <= max(width, 4 * terminal._depth(tree) + 20)
    assert {int(k) for k in re.findall(r"#(\d+)", narrow)} == set(range(len(words)))


def test_a_pipe_gets_whole_lines_and_a_terminal_wrapped_ones(tmp_path):
    long = [["a" * 30, *[f" {i:05d}" for i in range(60)], "</s>"], ["b", "</s>"]]
    write_run(tmp_path / "run", [record(long, [1.0, 0.0])])
    line = next(line for line in command(tmp_path / "run").splitlines() if "00059" in line)
    assert " 00001" in line
    assert line == line.rstrip()
    file = io.StringIO()
    terminal.show_group(Console(file=file, force_terminal=True, width=40, highlight=False), tmp_path / "run")
    assert max(map(len, plain(file.getvalue()).splitlines())) <= 40


def test_the_command_finds_steps_and_groups_and_says_which_there_are(tmp_path):
    first, second = record(WORDS, REWARDS, SURPRISAL), record(WORDS, REWARDS, SURPRISAL, id="train-2")
    write_run(tmp_path / "run", [first, second, {**first, "step": 10, "id": "train-3"}])
    assert "train-3, step 10" in command(tmp_path / "run")
    assert "train-2, step 1" in command(tmp_path / "run", "--step", "1", "--group", "1")
    with pytest.raises(RunError, match="no groups of step 7; recorded are the steps 1, 10"):
        command(tmp_path / "run", "--step", "7")
    for wrong in ("2", "-1"):
        with pytest.raises(RunError, match="groups 0 to 1; got"):
            command(tmp_path / "run", "--step", "1", "--group", wrong)
    with pytest.raises(ConfigError, match="allowed are leaf, grpo"):
        command(tmp_path / "run", "--credit", "ppo")
    with pytest.raises(RunError, match="is not a run directory"):
        command(tmp_path / "nowhere")
    write_run(tmp_path / "bare", [])
    with pytest.raises(RunError, match="no recorded groups"):
        command(tmp_path / "bare")
    (tmp_path / "bare" / "recipe.yaml").write_text(yaml.safe_dump(to_dict(AlignConfig())))
    with pytest.raises(RunError, match="of stage align"):
        command(tmp_path / "bare")


# -- the live view -----------------------------------------------------------------------------------------------------
def test_a_sparkline_runs_from_lowest_to_highest_with_gaps():
    assert terminal.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert terminal.sparkline([0.2, None, 0.1]) == "█ ▁"
    assert terminal.sparkline([3.0, 3.0]) == "▄▄"
    assert terminal.sparkline([0.0, 0.0, 1.0, 1.0], width=2) == "▁█"
    assert terminal.sparkline([]) == ""
    assert terminal.sparkline([None]) == " "


def metrics(step, **changes):
    values = {
        "step": step,
        "reward_mean": step / 10,
        "kl": 0.01,
        "grad_norm": 0.5,
        "length_mean": 8.0,
        "usable_fork_rate": 0.25,
        "memory/peak_gb": 2.0,
        "packed_tokens": 250,
        "plain_tokens": 1000,
        "seconds/sample": 1.0,
        "seconds/update": 2.0,
        "seconds/step": 4.0,
    }
    return values | changes


def test_the_stage_bar_is_as_long_as_the_stages_took():
    text = terminal.stage_bar([metrics(1), metrics(2)], width=8).plain
    assert text == "██▓▓▓▓▒▒  4.0 s a step:  █\u00a0sample\u00a01.0  ▓\u00a0update\u00a02.0  ▒\u00a0other\u00a01.0"
    assert terminal.stage_bar([]).plain == "  0.0 s a step:"


class FakeTrainer:
    """Two steps with a validation after each, as LeafTrainer reports them."""

    def __init__(self, path, report):
        self.run, self.report, self.on_step = RunDirectory(path), report, None
        self.args = SimpleNamespace(max_steps=3)
        self.accelerator = SimpleNamespace(is_main_process=True)

    def train(self, resume_from_checkpoint=False):
        for step in (2, 3):
            with (self.run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics(step)) + "\n")
            if self.on_step is None:
                self.report(f"step {step}/3  reward {step / 10}")
            else:
                self.on_step(metrics(step))
            with (self.run.path / "validation.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "bleu": 10.0 * step}) + "\n")
            self.report(f"step {step}/3  validation  bleu {10.0 * step:.2f}")
        return self.run


def test_the_live_view_stands_a_step_whose_updates_were_all_skipped(tmp_path):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    view = terminal.TrainingView(3, console)
    record = metrics(1, kl=None, grad_norm=None, packed_tokens=None, plain_tokens=None, reward_mean=None)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    view.add(record, RunDirectory(tmp_path))
    console.print(view)
    assert "none scored" in file.getvalue()


@pytest.mark.parametrize("width", [30, 100])
def test_the_live_view_shows_rewards_validation_stages_and_savings_of_the_whole_run(tmp_path, width):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics(1)) + "\n")  # before it was resumed
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=40, highlight=False, markup=False)
    terminal.train(FakeTrainer(tmp_path, console.print), console)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    last = " ".join(text[text.rindex("3/3") :].split())
    for part in ("▁▅█ 0.300 (0.100 to 0.300)", "▁█ 30.00 (20.00 to 30.00)", "75% of the", "sample 1.0", "kl 0.0100"):
        assert part.replace(" ", "") in last.replace(" ", "")
    assert "step 2/3 validation bleu 20.00" in " ".join(text.split())


def test_a_pipe_gets_the_plain_lines_and_no_live_view(tmp_path):
    lines = []
    trainer = FakeTrainer(tmp_path, lines.append)
    file = io.StringIO()
    terminal.train(trainer, Console(file=file))
    assert file.getvalue() == ""
    assert lines[:2] == ["step 2/3  reward 0.2", "step 2/3  validation  bleu 20.00"]
    assert trainer.on_step is None

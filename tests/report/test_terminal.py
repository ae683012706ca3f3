"""The tree of a recorded group on the terminal: exact text, harmless text, every width."""

import io
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from leaf.commands import main as cli
from leaf.commands.running import say
from leaf.config import AlignConfig, LeafConfig, to_dict
from leaf.errors import ConfigError, LeafError, RunError
from leaf.report import terminal
from leaf.report.drawn_group import DrawnGroup, pieces
from leaf.report.explorer import group_data
from leaf.visible import visible
from tests.helpers.recorded import REWARDS, SURPRISAL, WORDS, record, shown, tree_of, write_run


def plain(text):
    """Take out the colours that rich adds."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


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


def test_distinct_completions_show_their_probabilities_weights_and_masses():
    recipe = LeafConfig(rollout="distinct", credit="unordered_set", top_p=1.0)
    one = record(WORDS, REWARDS, SURPRISAL, distinct=True)
    text = shown(terminal.group_view(one, recipe, "unordered_set"))
    assert tree_of(text)[:3] == [
        "root  n 4  V̂ 0.557  mass 0.529 of 1",
        "├── press┃  n 3  V̂ 0.645  mass 0.479 of 0.905  A -0.41 to +0.50",
        "│   ├──  one to┃  n 2  V̂ 0.814  mass 0.388 of 0.607  A +0.06 to +0.50",
    ]
    assert "reward 1.000  #0 (p 0.223, w 0.311)" in text
    assert "w its weight" in text
    assert one["tree"]["value"][one["tree"]["node"][0][0]] == pytest.approx(0.645, abs=1e-3)  # Σ w r / Σ w, as recorded
    with pytest.raises(ConfigError, match="these completions are distinct"):
        terminal.group_view(one, recipe, "grpo")


def test_several_reward_functions_are_shown_one_by_one():
    one = record(WORDS, REWARDS, SURPRISAL)
    assert "(" not in shown(terminal.group_view(one, LeafConfig(), "leaf")).split("reward 1.000", 1)[1].split("#")[0]
    one["rewards_by_function"] = {"bleu": [0.5, 0.3, 0.1, None], "brief": [0.5, 0.3, 0.1, 0.2]}
    text = shown(terminal.group_view(one, LeafConfig(), "leaf"))
    assert "reward 1.000 (bleu 0.500, brief 0.500)" in text
    assert group_data(one, LeafConfig())["parts"]["bleu"] == [0.5, 0.3, 0.1, None]


def test_recorded_advantages_and_another_rule_on_the_same_tree():
    recorded = [[0.5] * 5, [-0.25] * 5, [0.0] * 5, [0.0] * 5]
    one = record(WORDS, REWARDS, SURPRISAL, advantages=recorded)
    text = shown(terminal.group_view(one, LeafConfig()))
    assert "credit      as recorded (recipe: leaf)" in text
    assert "├── press┃  n 3  V̂ 0.600  A -0.25 to +0.50" in text
    text = shown(terminal.group_view(one, LeafConfig(), "grpo"))
    assert "credit      grpo, computed on the same rollouts" in text
    # (1 - 0.5) / std of (1, 0.6, 0.2, 0.2) = 0.5 / 0.38297
    assert "leave■  A +1.31  reward 1.000  #0" in text
    assert "press┃  n 3  V̂ 0.600  A -0.78 to +1.31" in text


def test_the_runs_own_rule_takes_the_runs_options():
    one = record(WORDS, REWARDS, SURPRISAL)
    own = LeafConfig(credit="grpo", credit_options={"std_floor": 1.0})
    assert "leave■  A +0.50  reward 1.000  #0" in shown(terminal.group_view(one, own, "grpo"))
    assert "leave■  A +1.31  reward 1.000  #0" in shown(terminal.group_view(one, LeafConfig(), "grpo"))


def test_a_tree_says_where_the_run_credited_by_words_and_refuses_a_rule_without_its_draw():
    one = record(WORDS, REWARDS, SURPRISAL)
    words = LeafConfig(tree_key="words")
    assert "as recorded (recipe: leaf), by words; the tree below is by tokens" in shown(terminal.group_view(one, words))
    assert "by tokens; the run by words" in shown(terminal.group_view(one, words, "leaf"))
    with pytest.raises(ConfigError, match="importance weighs distinct completions, and these were drawn independently"):
        terminal.group_view(one, LeafConfig(), "importance")


def test_built_in_rules_need_no_code_of_the_recipe(tmp_path):
    settings = {"rollout": "distinct", "credit": "unordered_set", "top_p": 1.0, "plugins": ["gone.py"]}
    write_run(tmp_path / "run", [record(WORDS, REWARDS, SURPRISAL, distinct=True)], **settings)
    for rule in ("nbest", "unordered_set", "shrunken"):
        assert f"credit      {rule}" in command(tmp_path / "run", "--credit", rule)


def test_boundaries_of_the_runs_own_are_shown():
    one = record(WORDS, REWARDS, SURPRISAL)
    assert "boundaries  2\n" in shown(terminal.group_view(one, LeafConfig(credit_options={"boundaries": [2]})))


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
    assert "A is the advantage, 0 everywhere: all rewards in this group are equal." in text


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
    assert visible("a\nb\tc", keep="\n") == "a\nb␉c"
    harmless = "naïve 中文 🙂 नमस्ते שלום [bold]"
    assert visible(harmless) == harmless


def test_an_error_with_escapes_reaches_the_terminal_as_text(monkeypatch, capsys):
    def fail(arguments):
        raise LeafError("the reward function said [red] \x1b[31m and\nmore")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "leaf: the reward function said [red] ␛[31m and\nmore\n"
    say("left unscored: [/] \x1b]0;title\x07")
    assert capsys.readouterr().out == "left unscored: [/] ␛]0;title␇\n"


groups = st.lists(st.lists(st.sampled_from(["a", " b", "c", "\x1b[1m"]), max_size=12), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(groups, st.integers(0, 4), st.sampled_from([None, "leaf", "grpo", "tempo", "spo"]), st.integers(-60, 60))
def test_any_group_is_drawn_whole_at_any_width(words, boundaries, credit, room):
    rewards = [None if len(row) == 5 else len(row) / 10 for row in words]
    one = record(words, rewards, truncated=[len(row) % 2 == 0 for row in words])
    recipe = LeafConfig(credit_options={"max_boundaries": boundaries})
    view = terminal.group_view(one, recipe, credit)
    text = "\n".join(tree_of(shown(view)))
    assert sorted(map(int, re.findall(r"#(\d+)", text))) == list(range(len(words)))
    assert "\x1b" not in text
    levels = {-1: 0}
    for i, stretch in enumerate(DrawnGroup(one, recipe).stretches):
        levels[i] = levels[stretch.above] + 1
    guides = 4 * max(levels.values())  # rich's guides take four columns a level
    width = max(guides + 4 + room, 1)
    narrow = plain(shown(view, width=width))
    assert "\x1b" not in narrow
    lines = [line.replace("\u0302", "") for line in narrow.splitlines()]
    assert max(map(len, lines)) <= max(width, guides + 4 + terminal.NARROWEST)
    assert {int(k) for k in re.findall(r"#(\d+)", narrow)} == set(range(len(words)))


def test_a_pipe_gets_whole_lines_and_a_terminal_wrapped_ones(tmp_path):
    long = [["a" * 30, *[f" {i:05d}" for i in range(60)], "</s>"], ["b", "</s>"]]
    write_run(tmp_path / "run", [record(long, [1.0, 0.0])])
    line = next(line for line in command(tmp_path / "run").splitlines() if "00059" in line)
    assert " 00001" in line
    assert line == line.rstrip()
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, highlight=False, soft_wrap=True)  # as the command's
    terminal.show_group(console, tmp_path / "run")
    assert max(map(len, plain(file.getvalue()).splitlines())) <= 40


def test_the_command_finds_steps_and_groups_and_says_which_there_are(tmp_path):
    first, second = record(WORDS, REWARDS, SURPRISAL), record(WORDS, REWARDS, SURPRISAL, id="train-2")
    write_run(tmp_path / "run", [first, second, {**first, "step": 10, "id": "train-3"}])
    assert "train-3, step 10" in command(tmp_path / "run")
    assert "train-2, step 1" in command(tmp_path / "run", "--step", "1", "--group", "1")
    with pytest.raises(RunError, match=r"no groups of step 7\. It recorded the steps 1, 10"):
        command(tmp_path / "run", "--step", "7")
    for wrong in ("2", "-1"):
        with pytest.raises(RunError, match="groups 0 to 1; got"):
            command(tmp_path / "run", "--step", "1", "--group", wrong)
    with pytest.raises(ConfigError, match="Allowed are leaf, grpo"):
        command(tmp_path / "run", "--credit", "ppo")
    with pytest.raises(RunError, match="is not a run directory"):
        command(tmp_path / "nowhere")
    write_run(tmp_path / "bare", [])
    with pytest.raises(RunError, match="no recorded groups"):
        command(tmp_path / "bare")
    (tmp_path / "bare" / "recipe.yaml").write_text(yaml.safe_dump(to_dict(AlignConfig())))
    with pytest.raises(RunError, match="of stage align"):
        command(tmp_path / "bare")

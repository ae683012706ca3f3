"""The trainer: what it makes of a run, what it takes and refuses, and what it records."""

import shutil
import statistics
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from leaf import LeafTrainer, RLTrainer
from leaf.config import LeafConfig
from leaf.credit import BATCH_RULES, CREDIT_RULES, PrefixTree, credit_rule
from leaf.errors import ConfigError, DataError, RewardError, RunError
from leaf.model.draws import step_generator
from leaf.model.policy import Policy
from leaf.model.sampler import LocalSampler
from leaf.model.words import words_of
from leaf.rewards.total import Rewards
from leaf.train.making import parts_from_model
from leaf.train.rollout import rollout
from tests.helpers import tiny
from tests.helpers.training import length_reward, lines, recipe, trainer, weights, without_times


@pytest.mark.parametrize("credit", [*CREDIT_RULES, *BATCH_RULES])
def test_every_rule_trains_and_leaves_a_whole_run_directory(tmp_path, credit):
    run = trainer(recipe(tmp_path, credit=credit)).train()
    metrics = lines(run.path, "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3]
    for key in (
        "reward_mean",
        "reward_std",
        "kl",
        "clip_fraction",
        "grad_norm",
        "entropy",
        "length_mean",
        "truncated",
        "zero_variance_groups",
        "usable_fork_rate",
        "credit_mass/0",
        "seconds/sample",
        "seconds/update",
        "packed_tokens",
    ):
        assert all(key in record for record in metrics), key
    assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics[-1]["kl"] > 0  # the policy has left the reference
    assert metrics[0]["packed_tokens"] < metrics[0]["plain_tokens"]
    assert [record["step"] for record in lines(run.path, "validation.jsonl")] == [0, 2, 3]
    group = lines(run.path, "groups.jsonl")[0]
    assert len(group["completions"]) == len(group["rewards"]) == 4
    assert [len(ids) for ids in group["token_ids"]] == [len(a) for a in group["advantages"]]
    for name in ("recipe.yaml", "versions.json", "best/adapter_model.safetensors", "last/adapter_model.safetensors"):
        assert (run.path / name).is_file()
    assert any(bool(value.abs().max() > 0) for name, value in weights(run.path / "last").items() if "lora_B" in name)


def test_resume_equals_uninterrupted(tmp_path):
    whole = trainer(recipe(tmp_path, output_dir=str(tmp_path / "whole"), max_steps=4)).train()
    config = recipe(tmp_path, output_dir=str(tmp_path / "cut"), max_steps=4)
    first = trainer(config)
    save, stopped = first.save, RuntimeError("killed")

    def save_and_die():
        save()
        if first.done == 2:
            raise stopped

    first.save = save_and_die
    with pytest.raises(RuntimeError, match="killed"):
        first.train()
    cut = trainer(config).train(resume_from_checkpoint=True)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert without_times(lines(cut.path, name)) == without_times(lines(whole.path, name))
    ours, theirs = weights(cut.path / "last"), weights(whole.path / "last")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_credit_by_words_is_a_key(tmp_path):
    by_words = trainer(recipe(tmp_path, tree_key="words", credit="tempo")).rollout(1)
    tokenizer = tiny.tiny_model()[1].tokenizer
    for one, group, earned in zip(by_words.advantages, by_words.groups, by_words.rewards, strict=True):
        word, ids = words_of(group, tokenizer)
        said = PrefixTree.build(ids, word.amax(1) + 1)
        wanted = credit_rule("tempo")(said, earned).gather(1, word.clamp_min(0)).masked_fill(word < 0, 0.0)
        assert torch.allclose(one.double(), wanted.double(), atol=1e-6)
    with pytest.raises(ConfigError, match="tree_key is words and rollout is distinct"):
        trainer(recipe(tmp_path / "d", tree_key="words", rollout="distinct", credit="unordered_set", top_p=1.0))


def test_only_the_most_uncertain_tokens_are_credited(tmp_path):
    plain, some = (trainer(recipe(tmp_path / str(s), uncertain_share=s)).rollout(1) for s in (1.0, 0.25))
    tokens = sum(int((group.tree.node >= 0).sum()) for group in some.groups)
    credited = torch.cat([one.flatten() for one in some.advantages])
    assert 0 < int((credited != 0).sum()) <= -(-tokens // 4)
    for one, whole in zip(some.advantages, plain.advantages, strict=True):
        assert torch.equal(one[one != 0], whole[one != 0])


def test_an_own_policy_and_an_own_credit_rule(tmp_path):
    calls = []

    def rule(tree, rewards, *, surprisal=None):
        calls.append(rewards)
        return torch.ones(tree.tokens.shape, dtype=torch.float64) * (tree.node >= 0)

    model, processor = tiny.tiny_model()
    lora = peft.LoraConfig(r=2)
    policy = Policy.wrap(model, processor, lora=lora)
    config = recipe(tmp_path, max_steps=1)
    LeafTrainer(policy, ["bleu", length_reward], config, tiny.rows(4), credit=rule, say=lambda line: None).train()
    assert len(calls) == 2


def test_a_trainer_takes_finished_things(tmp_path):
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    made = (policy, Rewards([length_reward]), credit_rule("grpo"))
    run = RLTrainer(*made, recipe(tmp_path, max_steps=1), tiny.rows(4), say=lambda line: None).train()
    assert len(lines(run.path, "metrics.jsonl")) == 1
    with pytest.raises(DataError, match="There are no training rows"):
        RLTrainer(*made, recipe(tmp_path), [])


def test_a_rollout_by_itself_is_that_of_the_trainer(tmp_path):
    one = trainer(recipe(tmp_path))
    wanted = one.rollout(1)
    draws = [step_generator(one.config.seed, 1, position) for position in range(2)]
    got = rollout(one.policy, wanted.rows, one.rule, one.rewards, one.config, draws, on_policy=True)
    assert got.old_log_probs is None
    assert list(got.positions) == list(wanted.positions) == [0, 1]
    assert list(one.seconds) == ["embed", "sample", "reward", "credit", "reference"]
    for mine, theirs in zip(got.groups, wanted.groups, strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
    for name in ("rewards", "advantages", "ref_log_probs"):
        for mine, theirs in zip(getattr(got, name), getattr(wanted, name), strict=True):
            assert torch.equal(mine, theirs)
    before = rollout(one.policy, wanted.rows, one.rule, one.rewards, one.config, draws, on_policy=False)
    assert before.old_log_probs is not None


def test_refusals(tmp_path):
    config = recipe(tmp_path)
    trainer(config).train()
    with pytest.raises(RunError, match="exists already"):
        trainer(config).train()
    with pytest.raises(DataError, match="no training rows"):
        trainer(config, train_dataset=[])
    with pytest.raises(ConfigError, match="processing_class"):
        LeafTrainer(tiny.tiny_model()[0], ["bleu"], config, tiny.rows(2))
    with pytest.raises(ConfigError, match=r"The reward functions are \[\]: .*give a list of them"):
        trainer(config, reward_funcs=[])


def test_bad_values_of_credit_options_are_refused_before_the_model_is_loaded(tmp_path):
    config = recipe(tmp_path, credit_options={"max_boundaries": -1})
    with pytest.raises(ConfigError, match="max_boundaries is -1"):
        LeafTrainer("no/such/model", ["bleu"], config, tiny.rows(2))
    assert not (tmp_path / "run").exists()


def test_models_and_what_goes_with_them(tmp_path):
    config = recipe(tmp_path)
    model, processor = tiny.tiny_model()
    policy = Policy.wrap(model, processor, lora=peft.LoraConfig(r=2))
    frozen = Policy.wrap(*tiny.tiny_model())
    wrapped = policy.model
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (policy, {"peft_config": peft.LoraConfig(r=4)}, "A Policy brings its adapter and its processor"),
        (policy, {"processing_class": processor}, "A Policy brings its adapter and its processor"),
        (frozen, {}, "no trainable parameters"),
        (wrapped, {"processing_class": processor}, "The model is a PeftModel"),
        ("some/path", {"processing_class": processor}, "processing_class goes with a model object"),
    ]
    for given, options, message in refused:
        with pytest.raises(ConfigError, match=message):
            LeafTrainer(given, ["bleu"], config, tiny.rows(2), **options)


def test_a_script_written_for_trl_passes_one_function_and_none(tmp_path):
    run = trainer(recipe(tmp_path, max_steps=1), reward_funcs=length_reward).train(resume_from_checkpoint=None)
    assert len(lines(run.path, "metrics.jsonl")) == 1


def test_the_best_adapter_is_the_one_with_the_fewest_errors(tmp_path, monkeypatch):
    one = trainer(recipe(tmp_path, max_steps=4, eval_every=1, best_metric="wer"))
    evaluate, rates, saved = one.evaluate, [50.0, 40.0, 30.0, 60.0, 35.0], []

    def measured():
        result = evaluate()
        metrics, *rewards = ("wer", "bleu", "exact_match", "chrf"), "reward", "rewards/length_reward/mean"
        assert list(result.scores) == [*metrics, *rewards]
        return replace(result, scores={**result.scores, "wer": rates[one.done]})

    monkeypatch.setattr(one, "evaluate", measured)
    one.start()
    replace_directory = one.run.replace_directory

    def watched(name, write):
        saved.extend([len(lines(one.run.path, "validation.jsonl")) - 1] if name == "best" else [])
        replace_directory(name, write)

    monkeypatch.setattr(one.run, "replace_directory", watched)
    one.train()
    assert saved == [1, 2]
    assert one.best == 30.0


def test_a_reward_function_that_fails_and_a_run_without_checkpoint_are_named(tmp_path):
    def short(completions, **_):
        return [1.0]

    failing = trainer(recipe(tmp_path), reward_funcs=[short])
    with pytest.raises(RewardError, match="short"):
        failing.train()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    fresh = trainer(recipe(tmp_path))
    with pytest.raises(RunError, match="recorded steps but no checkpoints"):
        fresh.train(resume_from_checkpoint=True)


def test_a_run_whose_reward_failed_is_started_again_with_the_corrected_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(completions):\n    return [1 / 0]\n")
    config = recipe(tmp_path, rewards=[f"{file}:mine"], eval_every=0, max_steps=1)
    with pytest.raises(RewardError, match=r"mine raised ZeroDivisionError: .*mine\.py, line 2, in mine"):
        trainer(config, reward_funcs=None).train()
    file.write_text("def mine(completions):\n    return [float(i) for i in range(len(completions))]\n")
    run = trainer(config, reward_funcs=None).train(resume_from_checkpoint=True)
    assert [record["step"] for record in run.lines("metrics.jsonl")] == [1]


def test_every_functions_rewards_are_recorded_under_trls_names(tmp_path):
    states = []

    def length(completions):
        return [float(len(text)) for text in completions]

    def odd(completions, trainer_state, log_extra, log_metric, **_):
        states.append((trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch))
        log_extra("shouted", [text.upper() for text in completions])
        log_metric("count", len(completions))
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    def silent(completions):
        return [None for _ in completions]

    config = recipe(tmp_path, reward_weights=[0.5, 2.0, 1.0], eval_every=0, max_steps=2, prompts_per_rollout=2)
    run = trainer(config, reward_funcs=[length, odd, silent]).train()
    assert states == [(0, 2, 0.0), (1, 2, 0.4)]  # two of five rows a step
    first = next(iter(run.lines("metrics.jsonl")))
    groups = [group for group in run.lines("groups.jsonl") if group["step"] == 1]
    assert len(groups) == 2  # all of the step
    lengths = [float(len(text)) for group in groups for text in group["completions"]]
    assert [value for group in groups for value in group["rewards_by_function"]["length"]] == lengths
    assert groups[0]["rewards_by_function"]["odd"] == [1.0, None, 1.0, None]
    assert groups[1]["extra"] == {"shouted": [text.upper() for text in groups[1]["completions"]]}
    assert first["rewards/length/mean"] == pytest.approx(statistics.fmean(lengths))
    assert first["rewards/length/std"] == pytest.approx(statistics.stdev(lengths))
    assert (first["rewards/odd/mean"], first["rewards/odd/std"]) == (1.0, 0.0)
    assert (first["rewards/silent/mean"], first["rewards/silent/std"]) == (None, None)
    assert first["logged/count"] == 8.0


def test_one_completion_a_prompt_is_refused_because_rules_compare():
    with pytest.raises(ConfigError, match=r"num_completions is 1.* 2"):
        LeafConfig(num_completions=1)


def test_rows_may_differ_in_columns_that_no_reward_needs(tmp_path):
    """What a row lacks is None for the reward functions; a column they take by name has to be there from the start."""
    seen = []

    def noted(completions, note=None, **columns):
        seen.append((note, columns["hint"]))
        return length_reward(completions)

    rows = tiny.rows(2)
    rows[0]["hint"], rows[1]["note"] = "h", "n"
    trainer(recipe(tmp_path, max_steps=1), reward_funcs=[noted], train_dataset=rows).train()
    validated, (notes, hints), again = seen
    assert validated == again == ([None, None], [None, None])  # the validation rows have neither
    assert sorted(notes, key=str) == [None] * 4 + ["n"] * 4
    assert [h for h in hints if h] == ["h"] * 4
    assert all((note is None) == (hint is not None) for note, hint in zip(notes, hints, strict=True))

    def strict(completions, note, **columns):
        return length_reward(completions)

    with pytest.raises(DataError, match=r"strict takes 'note' by name, and training row 0"):
        trainer(recipe(tmp_path), reward_funcs=[strict], train_dataset=rows)

    class Lazy:
        """Rows that cannot be seen before they are read."""

        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return {key: value for key, value in rows[index].items() if key != "note"}

    def given_none(completions, note, **columns):
        assert note == [None] * len(completions)
        return length_reward(completions)

    config = recipe(tmp_path, output_dir=str(tmp_path / "lazy"), max_steps=1)
    trainer(config, reward_funcs=[given_none], train_dataset=Lazy()).train()


class Noted(LocalSampler):
    """Draws from the policy, and notes which weights it was told of and what it drew."""

    def __init__(self):
        self.calls = []

    def sync(self, policy, version, *, push=True):
        self.calls.append(("sync", version))

    def sample(self, policy, prompts, drawing, generators=None):
        self.calls.append((drawing.num_completions, len(prompts)))
        return super().sample(policy, prompts, drawing, generators)


def test_rollouts_and_validation_draw_from_the_sampler_with_the_weights_of_the_moment(tmp_path):
    config, (model, processor), noted = recipe(tmp_path, max_steps=2), tiny.tiny_model(), Noted()
    parts = parts_from_model(model, config, tiny.rows(5), tiny.rows(2), [length_reward], None, processor, None)
    run = RLTrainer(**parts, say=lambda line: None, sampler=noted).train()
    validation, steps = [("sync", 0), (1, 2)], [("sync", 0), (4, 2), ("sync", 1), (4, 2)]
    assert noted.calls == [*validation, *steps, ("sync", 2), (1, 2)]
    plain = trainer(recipe(tmp_path, max_steps=2, output_dir=str(tmp_path / "plain"))).train()
    assert without_times(lines(run.path, "metrics.jsonl")) == without_times(lines(plain.path, "metrics.jsonl"))

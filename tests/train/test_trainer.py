import json
import math
import shutil
import statistics
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from leaf import LeafTrainer, RLTrainer
from leaf.config import LeafConfig
from leaf.credit import BATCH_RULES, CREDIT_RULES, SURROGATES, PrefixTree, credit_rule
from leaf.errors import ConfigError, DataError, RewardError, RunError
from leaf.model import kept as kept_prompts
from leaf.model.decoding import PathDecoder
from leaf.model.draws import step_generator
from leaf.model.kept import taken
from leaf.model.policy import Policy
from leaf.model.sampler import LocalSampler
from leaf.model.words import words_of
from leaf.rewards.total import Rewards
from leaf.train import update
from leaf.train.making import parts_from_model
from leaf.train.rollout import rollout
from leaf.train.scoring import reference_log_probs
from leaf.train.update import add_gradient, update_record, weights_over_all
from tests.helpers import tiny


def length_reward(completions, **columns):
    """Something that differs between random completions."""
    return [len(text) / 20 for text in completions]


def recipe(tmp_path, **changes):
    values = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "prompts_per_rollout": 2,
        "num_completions": 4,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "eval_every": 2,
        "save_every": 1,
        "record_every": 1,
        "device": "cpu",
        "eval_items": 2,
    }
    return LeafConfig(**(values | changes))


def trainer(config, seed=0, **options) -> Any:
    model, processor = tiny.tiny_model()
    rows = tiny.rows(5)
    options = {"reward_funcs": [length_reward], "train_dataset": rows, "eval_dataset": rows[:2]} | options
    return LeafTrainer(model, args=config, processing_class=processor, say=lambda line: None, **options)


def lines(path, name):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def weights(directory):
    return peft.utils.load_peft_weights(str(directory))


def without_times(records):
    return [{k: v for k, v in record.items() if not k.startswith(("seconds", "memory"))} for record in records]


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


def test_small_updates_and_off_policy_passes(tmp_path):
    config = recipe(tmp_path, completions_per_update=3, passes_per_rollout=2, max_steps=2)
    leaf_trainer = trainer(config)
    assert leaf_trainer.updates_per_rollout == 6  # 8 completions in parts of 3, twice
    assert not leaf_trainer.on_policy
    run = leaf_trainer.train()
    metrics = lines(run.path, "metrics.jsonl")
    assert metrics[0]["ratio_max"] > 1.0
    assert "seconds/old" in metrics[0]


@pytest.mark.parametrize("parts", [{}, {"completions_per_update": 3, "passes_per_rollout": 2}], ids=["one", "six"])
def test_layers_below_the_adapter_run_once_per_rollout_and_training_stays_the_same(tmp_path, parts):
    lora = peft.LoraConfig(r=4, lora_alpha=8, layers_to_transform=[1])
    found: list[dict[str, torch.Tensor]] = []
    for shares in (True, False):
        one = trainer(recipe(tmp_path, kl_coef=0.1, **parts), peft_config=lora)
        one.policy.shares_below = shares
        rollout = one.rollout(1)
        assert (rollout.groups[0].entry.states is not None) == shares
        calls: list[Any] = []
        one.policy.language_model.layers[0].mlp.register_forward_hook(lambda *given, calls=calls: calls.append(given))
        one.update(rollout)
        assert bool(calls) != shares
        found.append({name: value.detach() for name, value in one.trained.items()})
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-5), name


def test_losses_differ_once_the_policy_has_moved_and_not_before(tmp_path):
    def adapter(name, **changes):
        run = trainer(recipe(tmp_path / name, learning_rate=1e-2, max_steps=1, eval_every=0, **changes)).train()
        return torch.cat([value.flatten() for value in weights(run.path / "last").values()])

    def trained(name, **changes):
        return adapter(f"{name}-{len(changes)}", loss=name, **changes)

    on_policy = [trained(name) for name in SURROGATES]
    assert all(torch.allclose(on_policy[0], other, atol=1e-6) for other in on_policy[1:])
    off_policy = [trained(name, completions_per_update=2, passes_per_rollout=3) for name in SURROGATES]
    for i, one in enumerate(off_policy):
        assert all(not torch.allclose(one, other, atol=1e-4) for other in off_policy[i + 1 :])


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


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_of_adam_are_two_numbers_below_one(tmp_path, betas):
    with pytest.raises(ConfigError, match="two numbers of at least 0 and below 1"):
        trainer(recipe(tmp_path, adam_betas=betas))


def test_one_update_with_all_completions_is_on_policy_however_it_is_asked_for(tmp_path):
    runs = []
    for name, size in (("none", None), ("equal", 8), ("more", 9)):
        config = recipe(tmp_path, output_dir=str(tmp_path / name), completions_per_update=size, max_steps=2)
        one = trainer(config)
        assert (one.updates_per_rollout, one.on_policy) == (1, True)
        runs.append(without_times(lines(one.train().path, "metrics.jsonl")))
    assert runs[0] == runs[1] == runs[2]


def test_what_is_recorded_of_a_rollout_leaves_skipped_updates_out():
    updates = [
        ({"loss": 1.0, "ratio_max": 1.5}, True),
        ({"loss": math.nan, "ratio_max": 9.0}, False),
        ({"loss": 2.0, "ratio_max": 1.25}, True),
    ]
    assert update_record(updates) == {"kl": None, "loss": 1.5, "ratio_max": 1.5, "skipped_steps": 1}
    assert update_record(updates[1:2]) == {"kl": None, "loss": None, "ratio_max": None, "skipped_steps": 1}
    assert update_record([({"kl": 0.25}, True), ({"kl": 0.75}, True)]) == {"kl": 0.5, "skipped_steps": 0}


def test_ratio_max_is_the_largest_of_all_updates(tmp_path):
    one = trainer(recipe(tmp_path, completions_per_update=3, passes_per_rollout=2))
    step, seen = one._optimizer_step, []

    def watched(part, count):
        stats, taken = step(part, count)
        seen.append(stats["ratio_max"])
        return stats, taken

    one._optimizer_step = watched
    assert one.update(one.rollout(1))["ratio_max"] == max(seen) > min(seen)


def test_without_a_reference_there_is_no_divergence(tmp_path):
    said = []
    one = trainer(recipe(tmp_path, kl_coef=0.0, max_steps=1, eval_every=0))
    one.say = said.append
    (record,) = lines(one.train().path, "metrics.jsonl")
    assert record["kl"] is None
    assert "seconds/reference" not in record
    assert any("kl none" in line for line in said)


def test_on_policy_gradient_equals_that_with_stored_old_log_probs(tmp_path, monkeypatch):
    """Leaving out the old forward changes nothing; nor do micro-batches."""
    gradients = []
    for name, on_policy, budget in (("a", True, 4096), ("b", False, 4096), ("c", True, 1)):
        one = trainer(recipe(tmp_path, output_dir=str(tmp_path / name), token_budget=budget))
        one.on_policy = on_policy
        seen, clip = {}, torch.nn.utils.clip_grad_norm_

        def look(parameters, norm, one=one, seen=seen, clip=clip):
            seen.update({n: p.grad.clone() for n, p in one.policy.named_parameters() if p.requires_grad})
            return clip(parameters, norm)

        rollout = one.rollout(1)
        assert (rollout.old_log_probs is None) == on_policy
        monkeypatch.setattr("leaf.train.update.clip_grad_norm_", look)
        one.update(rollout)
        gradients.append(seen)
    for other in gradients[1:]:
        for name, value in gradients[0].items():
            assert torch.allclose(value, other[name], rtol=1e-3, atol=1e-6), name


def test_dropout_needs_an_old_forward(tmp_path):
    assert not trainer(recipe(tmp_path, lora_dropout=0.1)).on_policy


@pytest.mark.parametrize("reward", [None, 0.5])
def test_unscored_and_equal_rewards_leave_the_weights(tmp_path, reward):
    config = recipe(tmp_path, kl_coef=0.0, max_steps=2, eval_every=0)
    run = trainer(config, reward_funcs=[lambda completions, **_: [reward] * len(completions)]).train()
    metrics = lines(run.path, "metrics.jsonl")
    assert metrics[0]["reward_mean"] == reward
    assert metrics[0]["unscored"] == (8 if reward is None else 0)
    assert metrics[0]["grad_norm"] == 0.0
    assert all(bool((v == 0).all()) for name, v in weights(run.path / "last").items() if "lora_B" in name)


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


def test_an_update_that_goes_on_from_the_sampled_prompts_learns_the_same(tmp_path, monkeypatch):
    runs, used = {}, []
    with monkeypatch.context() as patch:
        patch.setattr(update, "finish", lambda kept: used.append(len(kept)) or kept_prompts.finish(kept))
        for name, budget in (("kept", 512), ("again", 80)):  # 80 tokens are a prompt with its nodes, not two prompts
            runs[name] = trainer(recipe(tmp_path, output_dir=str(tmp_path / name), token_budget=budget)).train()
    assert used == [2, 2, 2, 0, 0, 0]
    kept, again = (without_times(lines(run.path, "metrics.jsonl")) for run in runs.values())
    for mine, theirs in zip(kept, again, strict=True):
        assert mine.pop("token_budget") != theirs.pop("token_budget")
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("fails", ["score", "finish"])
def test_an_update_whose_prompts_are_lost_runs_them_again(tmp_path, monkeypatch, fails):
    def never(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    one = trainer(recipe(tmp_path, max_steps=1))
    one.start()
    gradients = {}
    for lost in (False, True):
        made = one.rollout(1)
        assert all(group.kept is not None for group in made.groups)
        masks = [group.tree.node >= 0 for group in made.groups]
        weights = weights_over_all(masks, made.shares, one.config, one.processes)
        one.policy.zero_grad()
        if lost:
            with monkeypatch.context() as patch:
                patch.setattr(update, fails, never)
                with pytest.raises(torch.OutOfMemoryError):
                    add_gradient(one.policy, made, masks, weights, one.config)
            assert not any(group.kept.sources for group in made.groups)
            one.policy.zero_grad()
        add_gradient(one.policy, made, masks, weights, one.config)
        gradients[lost] = [p.grad.clone() for p in one.parameters]
    for mine, theirs in zip(gradients[True], gradients[False], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-4)


def test_prompts_that_other_weights_ran_are_run_again(tmp_path):
    one = trainer(recipe(tmp_path, max_steps=1))
    one.start()
    groups = one.rollout(1).groups
    with torch.no_grad():
        one.parameters[0].mul_(1.01)
    with taken(one.policy, [(group.kept, group.tree) for group in groups]) as kept:
        assert kept is None


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


def test_groups_without_a_single_token_teach_nothing(tmp_path):
    """Beside a normal group the update is that group's alone; by themselves they leave loss and gradient at zero."""
    one = trainer(recipe(tmp_path))
    rollout = one.rollout(1)
    width = rollout.groups[1].tokens.shape[1]
    for empty in (0, width):  # no tokens at all, or padding alone
        nothing = torch.zeros(4, empty)
        group = replace(
            rollout.groups[0], tokens=nothing.long(), lengths=torch.zeros(4, dtype=torch.long), surprisal=nothing
        )
        advantages = one.rule(group.tree, rollout.rewards[0], surprisal=nothing).float()
        assert advantages.shape == nothing.shape
        assert not bool(advantages.any())
        mixed = replace(
            rollout,
            groups=[group, rollout.groups[1]],
            advantages=[advantages, rollout.advantages[1]],
            ref_log_probs=reference_log_probs(one.policy, [group, rollout.groups[1]]),
        )
        found = []
        for positions in ([1], [0, 1], [0]):
            names = ("rows", "groups", "rewards", "advantages", "shares", "ref_log_probs", "positions")
            part = replace(mixed, **{name: [getattr(mixed, name)[i] for i in positions] for name in names})
            one.optimizer.zero_grad()
            masks = [group.tree.node >= 0 for group in part.groups]
            weights = weights_over_all(masks, part.shares, one.config, one.processes)
            sums = add_gradient(one.policy, part, masks, weights, one.config)
            assert all(math.isfinite(value) for value in sums.values())
            found.append((sums["loss"], [torch.zeros(1) if p.grad is None else p.grad.clone() for p in one.parameters]))
        (alone, wanted), (both, got), (only, none) = found
        assert both == pytest.approx(alone, abs=1e-6)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted, strict=True))
        assert only == 0.0
        assert not any(bool(gradient.any()) for gradient in none)
        twice = {name: [getattr(mixed, name)[0]] * 2 for name in ("groups", "advantages", "ref_log_probs")}
        assert one.update(replace(mixed, **twice))["skipped_steps"] == 0


def test_running_out_of_memory_halves_the_budget_and_loses_no_step(tmp_path, monkeypatch):
    """Forwards above a limit fail as CUDA's do; the run goes on in smaller ones and learns the same."""
    wanted = trainer(recipe(tmp_path, output_dir=str(tmp_path / "free"), token_budget=4096, seed=1)).train()
    config = recipe(tmp_path, output_dir=str(tmp_path / "tight"), token_budget=4096, seed=1)
    tight = trainer(config)
    decode, limit = tight.policy.decode, 100
    failed = []

    def small(embeddings, **arguments):
        if embeddings.shape[0] * embeddings.shape[1] > limit and torch.is_grad_enabled():
            failed.append(embeddings.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(embeddings, **arguments)

    monkeypatch.setattr(tight.policy, "decode", small)
    run = tight.train()
    assert failed
    budgets = [record["token_budget"] for record in lines(run.path, "metrics.jsonl")]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] < 4096
    got, whole = lines(run.path, "metrics.jsonl"), lines(wanted.path, "metrics.jsonl")
    assert [record["step"] for record in got] == [1, 2, 3]
    assert (tmp_path / "tight" / "last" / "adapter_model.safetensors").is_file()
    # AdamW's first steps are signs of gradients, so weights near zero may part; what was learned from may not.
    for key in ("grad_norm", "reward_mean", "packed_tokens"):
        assert got[0][key] == pytest.approx(whole[0][key], rel=1e-4), key


def test_memory_too_small_for_one_prompt_is_said_in_one_sentence(tmp_path, monkeypatch):
    poor = trainer(recipe(tmp_path))
    start = poor.start()
    rollout = poor.rollout(start + 1)

    def never(embeddings, **arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(poor.policy, "decode", never)
    with pytest.raises(RunError, match=r"completions of a single prompt were sampled\. Use fewer num_completions"):
        poor.rollout(start + 1)
    with pytest.raises(RunError, match=r"Memory ran out even at 64 tokens a forward.*gradient_checkpointing: true"):
        poor.update(rollout)


def test_running_out_of_memory_while_sampling_leaves_the_token_budget_and_is_kept(tmp_path, monkeypatch):
    """In a rollout and in a validation; a resumed run goes on with what fitted."""
    first = trainer(recipe(tmp_path, max_steps=2, token_budget=512))
    first.policy.rows_at_once, first.policy.keeps_prompts = 3, False
    start = PathDecoder.start

    def small(self):
        if len(self.prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return start(self)

    monkeypatch.setattr(PathDecoder, "start", small)
    run = first.train()
    assert [record["token_budget"] for record in lines(run.path, "metrics.jsonl")] == [512, 512]
    again = trainer(recipe(tmp_path, max_steps=3, token_budget=512))
    again.start(resume=True)
    assert again.policy.sampled_at_once == first.policy.sampled_at_once is not None
    assert again.policy.keeps_prompts is False
    assert again.policy.rows_at_once == 3


def test_the_budget_is_automatic_and_a_resumed_run_keeps_its_own(tmp_path):
    first = trainer(recipe(tmp_path, max_steps=2))
    assert 64 <= first.policy.token_budget <= 2048
    first.policy.token_budget = 77
    first.train()
    again = trainer(recipe(tmp_path, max_steps=3))
    again.start(resume=True)
    assert again.policy.token_budget == 77
    assert trainer(recipe(tmp_path, token_budget=333)).policy.token_budget == 333


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

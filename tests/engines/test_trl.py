"""LeafGRPOTrainer gives each token the credit that leaf's own loop would give it, and trains."""

import sys

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install '.[trl]'")

from leaf.credit import BATCH_RULES, BatchCredit, PrefixTree, RewardedGroup, batch_credit, credit_rule
from leaf.errors import ConfigError, DataError
from leaf.rewards.functions import REWARDS
from tests.helpers import trl_worker as worker
from tests.helpers.processes import launch
from tests.pages.shown import blocks

NAN = float("nan")


def earned(texts, functions, weights):
    """Sum up rewards as TRL documents it: a function that gives None counts nothing, all None leaves it unscored."""
    columns = [function(texts) for function in functions]
    rows = [[w * v for w, v in zip(weights, row, strict=True) if v is not None] for row in zip(*columns, strict=True)]
    return torch.tensor([sum(row) if row else NAN for row in rows], dtype=torch.float32).double()


def own_credit(kept, rule, functions=(worker.letters, worker.briefness), weights=(1.0, 0.5)):
    """Credit what one generation said as leaf's own loop does; kept has all completions, and prompts tell groups."""
    keys = [tuple(prompt) for prompt in kept["prompts"]]
    members = {key: [i for i, one in enumerate(keys) if one == key] for key in keys}
    rewards = earned(kept["texts"], functions, weights)
    groups = []
    for rows in members.values():
        lengths = torch.tensor([len(kept["said"][i]) for i in rows])
        width = int(lengths.max())
        tokens = torch.tensor([[*kept["said"][i], *[0] * (width - len(kept["said"][i]))] for i in rows])
        surprisal, entropy = -kept["log_probs"][rows, :width], kept["entropy"][rows, :width]
        groups.append(RewardedGroup(PrefixTree.build(tokens, lengths), rewards[rows], surprisal, entropy))
    if rule in BATCH_RULES:
        given = batch_credit(rule)(groups)
    else:
        given = [credit_rule(rule)(one.tree, one.rewards, surprisal=one.surprisal) for one in groups]
    wanted = torch.zeros(kept["advantages"].shape, dtype=torch.float64)
    for rows, one in zip(members.values(), given, strict=True):
        wanted[rows, : one.shape[1]] = one.double()
    assert len(members) == len(keys) / 8
    assert all(len(rows) == 8 for rows in members.values())
    return wanted


def assert_own_credit(kept, rule, **more):
    wanted = own_credit(kept, rule, **more)
    assert float(wanted.abs().max()) > 0.1
    tolerance = 1e-4 if rule == "gtpo" else 1e-6  # it divides by the entropy, which TRL computes in float32
    torch.testing.assert_close(kept["advantages"].double(), wanted, rtol=tolerance, atol=tolerance)
    return wanted


def weights_of(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("text", "leaf"), ("text", "gtpo"), ("text", "dr_grpo"), ("text", "leaf_batch"), ("vision", "leaf")],
)
def test_advantages_are_those_of_leafs_own_loop_while_the_model_learns(tmp_path, kind, rule):
    trainer = worker.trainer(tmp_path, kind, rule)
    before = weights_of(trainer)
    trainer.train()
    assert len(trainer.kept) == 2
    for kept in trainer.kept:
        wanted = assert_own_credit(kept, rule)
        varies = bool((wanted != wanted[:, :1]).logical_and(wanted != 0).any())
        assert varies == (rule in ("leaf", "gtpo", "leaf_batch"))
    assert max(float((value - before[name]).abs().max()) for name, value in weights_of(trainer).items()) > 1e-3
    assert all("clip_ratio/region_mean" in line for line in trainer.state.log_history[:2])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["leaf", "leaf_batch"])
def test_groups_that_lie_in_two_processes_get_the_same_credit(tmp_path, rule):
    processes = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch([*processes, "-m", "tests.helpers.trl_worker", str(tmp_path), rule])
    one, other = (torch.load(tmp_path / f"{i}.pt", weights_only=False) for i in range(2))
    assert one["moved"] == other["moved"] > 1e-3
    for mine, theirs in zip(one["kept"], other["kept"], strict=True):
        width = max(mine["advantages"].shape[1], theirs["advantages"].shape[1])

        def both(name, width=width, mine=mine, theirs=theirs):
            return torch.cat([torch.nn.functional.pad(x[name], (0, width - x[name].shape[1])) for x in (mine, theirs)])

        split = set(map(tuple, mine["prompts"])) & set(map(tuple, theirs["prompts"]))
        assert len(split) == 1
        lists = {name: mine[name] + theirs[name] for name in ("prompts", "said", "texts")}
        tensors = {name: both(name) for name in ("log_probs", "entropy", "advantages")}
        assert_own_credit({**lists, **tensors}, rule)


def test_an_adapter_is_trained_against_its_reference(tmp_path):
    import peft

    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = worker.trainer(tmp_path, beta=0.05, peft_config=lora, num_iterations=2, max_steps=3)
    trainer.train()
    for kept in trainer.kept:
        assert_own_credit(kept, "leaf")
    assert trainer.state.log_history[2]["kl"] > 0
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_truncated_completions_count_in_the_rewards_of_their_group(tmp_path):
    trainer = worker.trainer(tmp_path, mask_truncated_completions=True, max_completion_length=4)
    trainer.train()
    assert trainer.state.log_history[0]["completions/clipped_ratio"] > 0
    for kept in trainer.kept:
        assert_own_credit(kept, "leaf")


def test_the_table_of_completions_shows_the_advantage_of_leaf(tmp_path):
    trainer = worker.trainer(tmp_path, max_steps=1)
    trainer.train()
    (kept,) = trainer.kept
    lengths = torch.tensor([len(said) for said in kept["said"]])
    assert list(trainer._logs["advantages"]) == pytest.approx((kept["advantages"].sum(1) / lengths).tolist())
    assert len(trainer._logs["advantages"]) == len(trainer._logs["completion"]) == 16


def test_evaluation_has_credit_too(tmp_path):
    trainer = worker.trainer(tmp_path, max_steps=1, per_device_eval_batch_size=16)
    assert "eval_loss" in trainer.evaluate(worker.text_rows())
    for kept in trainer.kept:
        assert_own_credit(kept, "leaf")


def sampled_elsewhere(prompts, trainer):
    """Stand in for a sampler outside: it says what TRL's own generation says, with log-probabilities of its own."""
    ids, _, _ = trainer._tokenize_prompts(prompts)
    said, _ = trainer._generate_single_turn(ids, None, {}, trainer.num_generations)
    return {"prompt_ids": ids, "completion_ids": said, "logprobs": [[-0.1 * (t % 3) for t in one] for one in said]}


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_the_surprisal_is_that_of_the_sampler_where_it_gives_one(tmp_path):
    trainer = worker.trainer(tmp_path, rollout_func=sampled_elsewhere, max_steps=1, top_p=0.9)
    trainer.train()
    (kept,) = trainer.kept
    kept["log_probs"] = torch.zeros_like(kept["log_probs"])
    for i, said in enumerate(kept["said"]):
        kept["log_probs"][i, : len(said)] = torch.tensor([-0.1 * (t % 3) for t in said])
    assert_own_credit(kept, "leaf")


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_completion_that_the_sampler_could_not_score_gets_no_credit(tmp_path):
    def rollout(prompts, trainer):
        given = sampled_elsewhere(prompts, trainer)
        given["logprobs"][3][0] = None
        return given

    trainer = worker.trainer(tmp_path, rollout_func=rollout, max_steps=1, rewards=[worker.briefness])
    trainer.train()
    (kept,) = trainer.kept
    assert bool((kept["advantages"][3] == 0).all())
    assert int((kept["advantages"] != 0).any(1).sum()) > 8


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_completions_with_words_of_others_inside_are_refused(tmp_path):
    def rollout(prompts, trainer):
        given = sampled_elsewhere(prompts, trainer)
        return {**given, "env_mask": [[t % 2 for t in range(len(one))] for one in given["completion_ids"]]}

    trainer = worker.trainer(tmp_path, rollout_func=rollout, max_steps=1)
    with pytest.raises(DataError, match="gave an env_mask"):
        trainer.train()


def test_a_rule_and_a_reward_of_ones_own_and_the_rewards_of_leaf(tmp_path):
    def last_token(tree, rewards, *, surprisal=None, weight: float = 1.0):
        """Credit nothing but the last token."""
        credit = weight * (rewards - rewards.nanmean())
        return credit[:, None] * torch.nn.functional.one_hot(tree.lengths - 1, tree.tokens.shape[1])

    def similar(completions, **columns):
        return REWARDS["chrf"](completions, ["press one"] * len(completions))

    trainer = worker.trainer(
        tmp_path, "vision", last_token, {"weight": 2.0}, rewards=[similar], max_steps=1, max_completion_length=12
    )
    trainer.train()
    (kept,) = trainer.kept
    rewards = torch.tensor(similar(kept["texts"]), dtype=torch.float64)
    means = rewards.view(2, 8).mean(1).repeat_interleave(8)
    last = [float(row[len(said) - 1]) for row, said in zip(kept["advantages"], kept["said"], strict=True)]
    assert last == pytest.approx((2 * (rewards - means)).tolist(), abs=1e-6)
    assert float(kept["advantages"].sum()) == pytest.approx(sum(last), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"credit": "leav"}, "credit rule 'leav' is unknown"),
        ({"options": {"max_boundary": 1}}, "does not take the option max_boundary"),
        ({"credit": "importance"}, "weighs distinct completions"),
        ({"tools": [print]}, "tools and environment_factory"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "a credit rule sees one reward"),
        ({"scale_rewards": "batch"}, "credit='leaf_batch'"),
        ({"loss_type": "vespo"}, "loss_type is vespo"),
        ({"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold drops whole completions"),
        ({"top_p": 0.9, "min_p": 0.1}, "computes it without top_p, min_p. Leave them out"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, "without generation_kwargs no_repeat_ngram_size"),
    ],
)
def test_what_does_not_go_with_credit_per_token_is_refused_before_the_model_is_touched(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        worker.trainer(tmp_path, **given)


def test_the_python_of_the_page_trains(tmp_path, monkeypatch):
    (block,) = [one for one in blocks("engines.md", "python") if "LeafGRPOTrainer" in one]
    model, tokenizer = worker.text_model()
    given = {"model": model, "tokenizer": tokenizer, "train_dataset": worker.text_rows()}
    monkeypatch.chdir(tmp_path)
    plain = 'use_cpu=True, bf16=False, max_steps=1, activation_checkpointing=False, report_to="none", disable_tqdm=True'
    exec(block.replace("num_generations=8,", f"num_generations=8, {plain},"), {**given, "reward_funcs": worker.letters})
    assert (tmp_path / "runs/trl/checkpoint-1").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo"])
def test_every_other_loss_takes_credit_per_token(tmp_path, loss):
    trainer = worker.trainer(tmp_path, max_steps=1, loss_type=loss)
    before = weights_of(trainer)
    trainer.train()
    assert_own_credit(trainer.kept[0], "leaf")
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_rules_that_read_no_surprisal_go_with_any_sampling_and_need_no_further_forward(tmp_path):
    trainer = worker.trainer(tmp_path, credit="rloo", top_p=0.8, max_steps=1)
    passes = []
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: passes.append(1) or forward(*a, **k)
    trainer.train()
    assert_own_credit(trainer.kept[0], "rloo")
    assert len(passes) == 1  # of the update


def test_a_bound_batch_rule_may_be_given(tmp_path):
    trainer = worker.trainer(
        tmp_path, credit=BatchCredit(BATCH_RULES["leaf_batch"], {"max_boundaries": 0}), max_steps=1
    )
    trainer.train()
    (kept,) = trainer.kept
    for advantages, said in zip(kept["advantages"], kept["said"], strict=True):  # without boundaries, one span each
        assert bool((advantages[: len(said)] == advantages[0]).all())
    assert not torch.equal(kept["advantages"], own_credit(kept, "leaf_batch").float())

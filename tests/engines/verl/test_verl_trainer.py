"""The trainers of leaf.engines.verl through real Ray and TransferQueue: advantages in the queue are leaf's own."""

# pyright: reportMissingImports=false

import math
import subprocess
import sys

import pytest
import torch

from leaf.credit import batch_credit, leaf_advantages
from leaf.credit.batches import RewardedGroup
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError, DataError, NotRecorded
from tests.engines.verl.conftest import completion, put


def trainer(config):
    from verl.trainer.ppo.v1 import get_trainer_cls

    import leaf.engines.verl.plugin  # noqa: F401

    return get_trainer_cls(config.trainer.v1.trainer_mode)(config)


def advantages(queue, batch):
    """Read what is in the queue: row → tensor without padding."""
    data = queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages", "returns"])
    assert all(torch.equal(a, b) for a, b in zip(data["advantages"].unbind(), data["returns"].unbind(), strict=True))
    return data["advantages"].unbind()


def padded(rows, name):
    return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)


def ours(rows, rewards=None, **options):
    """Compute leaf's advantages of one group without any engine."""
    lengths = torch.tensor([len(row["responses"]) for row in rows])
    rewards = padded(rows, "rm_scores").sum(1) if rewards is None else rewards
    found = leaf_advantages(
        padded(rows, "responses"), lengths, -padded(rows, "rollout_log_probs").double(), rewards, **options
    )
    return [row[:length].float() for row, length in zip(found, lengths.tolist(), strict=True)]


def check(found, rows, **options):
    for uid in dict.fromkeys(row["uid"] for row in rows):
        places = [i for i, row in enumerate(rows) if row["uid"] == uid]
        for place, wanted in zip(places, ours([rows[i] for i in places], **options), strict=True):
            torch.testing.assert_close(found[place], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["leaf_sync", "leaf_colocate_async", "leaf_separate_async"])
def test_advantages_in_the_queue_are_leafs(queue, compose, groups, mode):
    standalone = ["actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl"]
    credit = ["+algorithm.leaf.rule=leaf", "+algorithm.leaf.options.max_boundaries=1"]
    config = compose(f"trainer.v1.trainer_mode={mode}", *credit, *(standalone if "separate" in mode else []))
    batch = put(queue, groups, mode)
    metrics = {}
    batch = trainer(config)._compute_advantage(batch, metrics)
    check(advantages(queue, batch), groups, max_boundaries=1)
    assert "rollout_corr/kl" in metrics  # verl's own part ran


def test_verl_takes_the_trainer_for_its_own_synchronous_one(compose):
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    made = trainer(compose())
    assert made.trainer_mode == "sync"
    assert type(made.replay_buffer) is ReplayBuffer


def test_importance_weights_and_rejection_stay_verls(queue, compose, groups):
    config = compose(
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_is_threshold=1.1",
        "algorithm.rollout_correction.rollout_rs=token_k1",
        "algorithm.rollout_correction.rollout_rs_threshold=0.8_1.25",
    )
    batch = trainer(config)._compute_advantage(put(queue, groups, "corrected"), {})
    names = ["rollout_is_weights", "response_mask", "old_log_probs"]
    data = queue.kv_batch_get(keys=batch.keys, partition_id="corrected", select_fields=names)
    assert not all(mask.bool().all() for mask in data["response_mask"].unbind())
    weights = torch.cat(data["rollout_is_weights"].unbind())
    ratio = torch.cat([(row["old_log_probs"] - row["rollout_log_probs"]).exp() for row in groups])
    kept = torch.cat(data["response_mask"].unbind()).bool()
    torch.testing.assert_close(weights[kept], ratio.clamp_max(1.1)[kept])
    check(advantages(queue, batch), groups)  # the tree is of what was sampled


def test_kl_in_the_reward_reaches_the_credit(queue, compose, groups):
    rows = [{**row, "ref_log_prob": row["old_log_probs"] - 0.1} for row in groups]
    config = compose("algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.kl_coef=0.5")
    batch = trainer(config)._compute_advantage(put(queue, rows, "kl"), {})
    found = advantages(queue, batch)
    for uid in "ab":
        places = [i for i, row in enumerate(rows) if row["uid"] == uid]
        its = [rows[i] for i in places]
        rewards = padded(its, "rm_scores").sum(1) - torch.tensor([0.05 * len(row["responses"]) for row in its])
        for place, wanted in zip(places, ours(its, rewards), strict=True):
            torch.testing.assert_close(found[place], wanted, rtol=1e-5, atol=1e-6)


def test_unscored_completions_and_verls_padding_get_exactly_0(queue, compose, groups):
    lost = completion("a", [1, 2, 3, 3], math.nan, 7)
    filler = completion("padfeed", [9], 0.0, 8, response_mask=torch.zeros(1, dtype=torch.int64))
    rows = [*groups, lost, filler]
    tags = [{"status": "success"}] * 7 + [{"status": "success", "is_padding": True}]
    batch = trainer(compose())._compute_advantage(put(queue, rows, "padding", tags=tags), {})
    found = advantages(queue, batch)
    check(found[:7], rows[:7])
    assert not found[6].any()
    assert not found[7].any()


def test_rules_of_a_whole_batch_read_the_entropy_of_verls_actor(queue, compose, groups):
    config = compose("+algorithm.leaf.rule=gtpo")
    found = advantages(queue, trainer(config)._compute_advantage(put(queue, groups, "entropy"), {}))
    places = [[i for i, row in enumerate(groups) if row["uid"] == uid] for uid in "ab"]
    of_groups = []
    for its in places:
        rows = [groups[i] for i in its]
        tree = PrefixTree.build(padded(rows, "responses"), torch.tensor([len(row["responses"]) for row in rows]))
        surprisal, entropy = -padded(rows, "rollout_log_probs").double(), padded(rows, "entropy").double()
        of_groups.append(RewardedGroup(tree, padded(rows, "rm_scores").sum(1).double(), surprisal, entropy))
    for its, given in zip(places, batch_credit("gtpo")(of_groups), strict=True):
        for place, row in zip(its, given, strict=True):
            length = len(groups[place]["responses"])
            torch.testing.assert_close(found[place], row.expand(given.shape[1])[:length].float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["actor_rollout_ref.rollout.calculate_log_probs=False"], NotRecorded, "calculate_log_probs=True"),
        (
            ["actor_rollout_ref.rollout.logprobs_mode=raw_logprobs", "actor_rollout_ref.rollout.temperature=0.7"],
            NotRecorded,
            "logprobs_mode=processed_logprobs",
        ),
        (
            ["+algorithm.leaf.rule=gtpo", "algorithm.rollout_correction.bypass_mode=True"],
            NotRecorded,
            "bypass_mode=False",
        ),
        (["algorithm.adv_estimator=gae"], ConfigError, "adv_estimator=grpo"),
        (["+algorithm.leaf.rule=laef"], ConfigError, "Did you mean 'leaf'"),
        (["+algorithm.leaf.option=1"], ConfigError, "Did you mean 'options'"),
        (["+algorithm.leaf=grpo"], ConfigError, r"\+algorithm.leaf.rule"),
        (["+algorithm.leaf.options.max_boundaries=-1"], ConfigError, "max_boundaries is -1"),
    ],
)
def test_what_cannot_be_credited_is_refused_before_anything_starts(compose, overrides, error, words):
    with pytest.raises(error, match=words):
        trainer(compose(*overrides))


def test_a_rule_that_reads_no_surprisal_needs_none(queue, compose, groups):
    config = compose("+algorithm.leaf.rule=dr_grpo", "actor_rollout_ref.rollout.calculate_log_probs=False")
    rows = [{name: value for name, value in row.items() if name != "rollout_log_probs"} for row in groups]
    found = advantages(queue, trainer(config)._compute_advantage(put(queue, rows, "plain"), {}))
    assert [row[0].item() for row in found[::2]] == [0.5, -0.5, 0.0]


def test_several_pieces_of_one_completion_are_refused(queue, compose, groups):
    keys = [f"{row['uid']}_{i}_{i % 2}" for i, row in enumerate(groups)]
    with pytest.raises(DataError, match="one stretch of tokens"):
        trainer(compose())._compute_advantage(put(queue, groups, "pieces", keys=keys), {})


def test_a_rule_of_the_users_own_comes_by_plugin(queue, compose, groups, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from leaf.credit import CREDIT_RULES\n"
        "CREDIT_RULES['doubled'] = lambda tree, rewards, *, surprisal=None: 2 * rewards[:, None]\n"
    )
    config = compose(f"+algorithm.leaf.plugins=[{tmp_path}/mine.py]", "+algorithm.leaf.rule=doubled")
    found = advantages(queue, trainer(config)._compute_advantage(put(queue, groups, "own"), {}))
    assert [row[0].item() for row in found] == [2.0, 0.0, 0.0, 1.5, 1.0, 0.5]


def fresh(code, **environment):
    import os

    run = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(run, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    "environment",
    [{}, {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "leaf.engines.verl.plugin"}],
    ids=["entry point", "environment"],
)
def test_verl_finds_the_trainer_in_a_fresh_process(environment):
    code = "import verl\nfrom verl.trainer.ppo.v1 import get_trainer_cls as g\nprint(g('leaf_sync').__module__)"
    done = fresh(code, **environment)
    assert done.stdout.split() == ["leaf.engines.verl.trainer"], done.stderr[-2000:]

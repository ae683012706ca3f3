"""Rewards of leaf, called by verl's own reward manager."""

# pyright: reportMissingImports=false

import asyncio
import math

import numpy as np
import pytest
import torch

from leaf.engines.verl.reward import leaf_reward
from leaf.errors import ConfigError, DataError
from leaf.rewards.total import Rewards

ROW = {"prompt": "What is said?", "reference": "press the star key", "kind": "key"}
SAID = "press the star"
BY_LEAF = [
    "reward.custom_reward_function.path=pkg://leaf.engines.verl.reward",
    "reward.custom_reward_function.name=leaf_reward",
]
KWARGS = "+reward.custom_reward_function.reward_kwargs"


class Tokenizer:
    """Decodes ids to characters."""

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids.tolist()))


def managed(config, said, row, ground_truth):
    """Score one completion as verl's reward loop does."""
    from verl.protocol import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    async def scored():
        manager = load_reward_manager(config, Tokenizer())
        ids = torch.tensor([[ord(one) for one in said]])
        extra = {"index": 3, "split": "train", "columns": row}
        return await manager.run_single(
            DataProto.from_dict(
                tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
                non_tensors={
                    "data_source": np.array(["calls"], dtype=object),
                    "reward_model": np.array([{"style": "rule", "ground_truth": ground_truth}], dtype=object),
                    "extra_info": np.array([extra], dtype=object),
                },
            )
        )

    return asyncio.run(scored())


@pytest.mark.parametrize("manager", ["naive", "dapo"])
def test_verls_reward_manager_calls_leafs_rewards(compose, manager):
    config = compose(
        *BY_LEAF,
        f"reward.reward_manager.name={manager}",
        f"{KWARGS}.functions=[bleu,exact_match,chrf]",
        f"{KWARGS}.weights=[1.0,0.5,0.25]",
        f"{KWARGS}.options.chrf.word_order=2",
    )
    result = managed(config, SAID, ROW, ROW["reference"])
    rewards = Rewards(["bleu", "exact_match", "chrf"], weights=[1.0, 0.5, 0.25], options={"chrf": {"word_order": 2}})
    wanted = rewards.of_texts([ROW], [[SAID]])
    assert 0 < result["reward_score"] == wanted.totals[0] < 1.75
    parts = {name: values[0] for name, values in wanted.parts.items()}
    assert {name: result["reward_extra_info"][name] for name in parts} == parts


def test_functions_of_the_users_own_get_the_columns(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def keyed(completions, prompts, reference, kind, level=7, **columns):\n"
        "    assert not {'index', 'split', 'num_turns'} & set(columns)\n"
        "    return [len(prompts[0]) + (kind[0] == 'key') + len(reference[0])]\n"
        "def silent(completions, **columns):\n"
        "    return [None]\n"
    )
    info = {"index": 3, "split": "train", "num_turns": 2, "columns": ROW}
    keyed, silent = f"{tmp_path}/mine.py:keyed", f"{tmp_path}/mine.py:silent"
    assert leaf_reward("calls", SAID, ROW["reference"], info, functions=keyed)["score"] == 13 + 1 + 18
    # A file that leaf did not write has its columns beside verl's own keys.
    beside = {"index": 3, "split": "train", "num_turns": 2, **ROW}
    assert leaf_reward("calls", SAID, ROW["reference"], beside, functions=keyed)["score"] == 32
    assert math.isnan(leaf_reward("calls", SAID, None, info, functions=[silent])["score"])
    with pytest.raises(DataError, match="takes 'kind' by name"):
        leaf_reward("calls", SAID, "x", {"index": 0}, functions=keyed)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"reward_kwargs\.functions="):
        leaf_reward("calls", SAID, "x", {})
    with pytest.raises(ConfigError, match="Did you mean 'bleu'"):
        leaf_reward("calls", SAID, "x", {}, functions=["blue"])

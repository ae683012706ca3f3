"""Updates that continue from the sampler's run of the prompts, whatever part of the decoder is adapted."""

import copy
from typing import Any

import peft
import pytest
import torch

from leaf.model.kept import finish, may_keep, taken
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.families import assert_same_gradients, gradient


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["down_proj"]}, {"layers_to_transform": [1]}],
    ids=str,
)
def test_keys_and_values_ahead_of_the_first_adapted_layer_have_no_gradient(settings: dict[str, Any]):
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2, init_lora_weights=False, **settings))
    prompts = policy.embed(tiny.rows(3))
    draws = torch.Generator().manual_seed(0)
    groups = sample(policy, prompts, num_completions=4, max_new_tokens=6, generator=draws, keep_prompts=True)
    trees = [group.tree for group in groups]
    weights = [torch.randn(group.tokens.shape, generator=draws) * (group.tree.node >= 0) for group in groups]
    wanted = gradient(policy, score(policy, prompts, trees).log_probs, weights)
    assert any(float(value.abs().max()) > 1e-3 for value in wanted.values())
    with taken(policy, [(group.kept, group.tree) for group in groups]) as kept:
        assert kept is not None
        assert any(not leaf.requires_grad for leaf in (*kept[0].keys, *kept[0].values))
        gradient(policy, score(policy, prompts, trees, kept).log_probs, weights)
        finish(kept)
    assert_same_gradients({n: p.grad for n, p in policy.named_parameters() if p.requires_grad}, wanted)


def test_prompts_are_run_again_with_other_weights_and_out_of_a_copy():
    """A fused optimiser changes weights without torch counting it, and a copy has no graph for the gradient."""

    def step(policy, groups):
        trained = [p for p in policy.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(trained, lr=1e-6, fused=True).step()
        return groups

    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2, init_lora_weights=False))
    prompts = policy.embed(tiny.rows(2))
    changes = (lambda policy, groups: groups, step, lambda *given: copy.deepcopy(given[1]))
    for change, usable in zip(changes, (True, False, False), strict=True):
        draws = torch.Generator().manual_seed(0)
        groups = sample(policy, prompts, num_completions=2, max_new_tokens=3, generator=draws, keep_prompts=True)
        with taken(policy, [(group.kept, group.tree) for group in change(policy, groups)]) as kept:
            assert (kept is not None) == usable


def test_prompts_are_kept_for_the_tree_alone():
    for layout, keeps in ((None, True), ("tree", True), ("prompt_once", False), ("copies", False)):
        policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2), layout=layout)
        assert may_keep(policy, policy.embed(tiny.rows(1))) == keeps

import peft
import pytest
import torch

from leaf.model.policy import Policy
from leaf.model.sampler import Drawing, LocalSampler
from leaf.model.sampling import sample
from tests.helpers import tiny


@pytest.fixture(scope="module")
def policy():
    model, processor = tiny.tiny_model()
    torch.manual_seed(1)
    return Policy.wrap(model, processor, lora=peft.LoraConfig(r=2, init_lora_weights=False), temperature=0.8)


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_the_local_sampler_draws_what_sample_draws(policy):
    prompts = policy.embed(tiny.rows(2))
    how = {"num_completions": 4, "max_new_tokens": 6, "temperature": 0.8, "top_p": 0.7, "top_k": 20}
    sampler = LocalSampler()
    assert sampler.exact
    assert sampler.begin(policy) == []
    sampler.sync(policy, 3)
    got = sampler.sample(policy, prompts, Drawing(**how, entropy=True), generators(2))
    wanted = sample(policy, prompts, **how, entropy=True, generator=generators(2))
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.surprisal, other.surprisal)
        assert one.entropy is not None
        assert one.version is None
    sampler.close()


def test_it_draws_distinct_completions_where_the_drawing_says_so(policy):
    prompts = policy.embed(tiny.rows(1))
    (group,) = LocalSampler().sample(policy, prompts, Drawing(6, 4, distinct=True), generators(1))
    assert group.draw is not None
    assert len({tuple(row) for row in group.tokens.tolist()}) == len(group.tokens)

"""The benchmark of decoders: it measures what the sampler uses, on the same draws."""

from argparse import Namespace

import peft
import torch

from benchmarks.decoding import compare
from leaf.model import distinct, sampling
from leaf.model.decoding import PathDecoder, RowDecoder
from leaf.model.policy import Policy
from tests.helpers import tiny


def test_decoders_draw_the_same_completions(monkeypatch):
    for room in (sampling, distinct):
        monkeypatch.setattr(room, "decoder", room.decoder)
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    prompts = policy.embed(tiny.rows(2))
    generators = [torch.Generator() for _ in prompts]

    def independent():
        generator = torch.Generator().manual_seed(1)
        groups = sampling.sample(policy, prompts, num_completions=3, max_new_tokens=6, generator=generator)
        return [group.tokens.tolist() for group in groups]

    def without_replacement():
        for generator in generators:
            generator.manual_seed(2)
        groups = distinct.sample_distinct(policy, prompts, generators, num_completions=3, max_new_tokens=6)
        return [group.tokens.tolist() for group in groups]

    for draw in (independent, without_replacement):
        found = compare(Namespace(rounds=1, slow=60.0), {"paths": PathDecoder, "rows": RowDecoder}, 6, draw)
        assert [found[name]["runs"] for name in ("paths", "rows")] == [2, 2]
        assert all(one["same_as_first"] and one["calls"] > 0 and one["rows_a_step"] > 0 for one in found.values())

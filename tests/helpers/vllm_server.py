"""A real vLLM server for tests with the marker vllm, and models that it can serve: heads have at least 32 values."""

import os
from contextlib import contextmanager

import peft
import pytest
import torch

from leaf.engines.vllm.launch import find_vllm, free_port, running, serve_command
from leaf.errors import ConfigError
from leaf.model.policy import Policy
from tests.helpers.families import build
from tests.helpers.models.common import wider


def wide_policy(case, *, seed=1, **options):
    """Return a policy with a random adapter of rank 4 whose language model vLLM can serve."""
    with wider():
        model, processor = build(case)
    torch.manual_seed(seed)
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    return Policy.wrap(model, processor, lora=lora, **options)


def program():
    """Find vLLM, or skip the test with the reason."""
    try:
        return find_vllm()
    except ConfigError as error:
        pytest.skip(str(error))


@contextmanager
def serving(model, folder, *, rank=8, dtype="float32", longest=512, more=()):
    """Serve an exported language model on a port of this machine, and give its address; the log is in `folder`."""
    port = free_port()
    # No graph is compiled, which would take a minute; and nobody is told that a server runs.
    more = ["--enforce-eager", "--max-num-seqs", "16", *more]
    command = serve_command(program(), model, rank=rank, dtype=dtype, port=port, longest=longest, more=more)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with running(command, port, folder / f"vllm-{port}.log", wait_s=600) as url:
        yield url

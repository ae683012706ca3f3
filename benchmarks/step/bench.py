"""What all arms share: the grid, the model with its adapter, and the meter."""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AutoConfig,
    AutoProcessor,
    GenerationConfig,
)

from leaf.model.demo import resolve_model
from leaf.model.layer_forward import plain_forward
from leaf.model.policy import Policy

ARMS = ("leaf", "stock", "published", "trl")
RATE = 16000  # Hz
KL_COEF = 0.02
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES = {  # language models with random weights, by the published configuration of that name
    "granite-1b": {  # ibm-granite/granite-4.0-1b, without its four constant multipliers
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 4096,
        "vocab_size": 100352,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}


@dataclass(frozen=True)
class Cell:
    """Name one point of the grid: P prompt tokens, K completions, R tokens each."""

    prompt_tokens: int
    completions: int
    length: int


class Meter:
    """Take seconds and, if asked, peak memory in bytes of named phases, and as `step` of all together.

    A phase's peak is above what was held as it began, that of the step above what was held as the first one did.
    """

    def __init__(self, device: torch.device, *, memory: bool):
        self.cuda = device.type == "cuda"
        self.memory = memory
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, int] = {}
        self.computed = 0.0  # CPU seconds of the phases, all threads
        self._name, self._resident, self._began, self._computed = "", 0, 0.0, 0.0
        self._before: int | None = None

    def start(self, name: str) -> None:
        """Begin a phase."""
        self._name = name
        if self.memory:
            self._resident = self._reset_peak()
            self._before = self._resident if self._before is None else self._before
        self._synchronise()
        self._began, self._computed = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """End the phase begun last."""
        self._synchronise()
        self.seconds[self._name] = time.perf_counter() - self._began
        self.computed += time.process_time() - self._computed
        if self.memory:
            high = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
            self.peak[self._name] = high - self._resident
            self.peak["step"] = max(self.peak.get("step", 0), high - (self._before or 0))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        self.start(name)
        yield
        self.stop()

    def _synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _reset_peak(self) -> int:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")


def _resident(key: str) -> int:
    """Return a size of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 4), "range": [round(min(values), 4), round(max(values), 4)]}


@dataclass
class Bench:
    """Hold what all cells share. `gradients` keeps each arm's gradient while `keep` is set."""

    args: argparse.Namespace
    policy: Policy
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    keep: bool = False
    gradients: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def base(self) -> Any:
        """Return the transformers model; its layers carry the adapter."""
        return self.policy.model.get_base_model()  # pyright: ignore[reportCallIssue]  (a PeftModel)

    @cached_property
    def linears(self) -> list[Tensor]:
        """Return the weights (outputs, inputs) of the language model's linear layers, LoRA and head left out."""
        modules = self.policy.language_model.named_modules()
        return [m.weight.detach() for name, m in modules if isinstance(m, nn.Linear) and "lora_" not in name]

    @cached_property
    def weights(self) -> int:
        """Return the number of those weights."""
        return sum(weight.numel() for weight in self.linears)

    @cached_property
    def activation_bytes(self) -> float:
        """Return the bytes a forward saves for the backward pass, per token: the slope between 32 and 96 tokens."""
        return (_saved_bytes(self.policy, 96) - _saved_bytes(self.policy, 32)) / 64


def make_bench(args: argparse.Namespace, layers: Sequence[int] | None = None) -> Bench:
    """Load the policy with an adapter that is not zero, so that A and B have gradients and the divergence is real.

    Args:
        args: as `benchmarks.step` takes them.
        layers: numbers of the decoder's layers that are adapted; None for all.
    """
    lora = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=list(LORA_LAYERS))
    lora.layers_to_transform = None if layers is None else list(layers)
    options: dict[str, Any] = {"lora": lora, "token_budget": args.token_budget}
    path = resolve_model(args.model)
    if args.shape is None:
        policy = Policy.load(path, dtype=args.dtype, device=args.device, **options)
    else:
        policy = Policy.wrap(_random_model(path, args), AutoProcessor.from_pretrained(path), **options)
    policy.eos_token_ids = (-1,)  # nothing ends a completion before R tokens
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    set_adapter(parameters)
    return Bench(args, policy, parameters, torch.optim.AdamW(parameters.values(), lr=0.0))


def set_adapter(parameters: dict[str, nn.Parameter]) -> None:
    """Give an adapter's B small random values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.005)


def gradients_differ(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Return ‖Δ‖ over the whole gradient, and the largest of one matrix over the largest matrix, both relative."""
    distance = {name: float((ours[name] - gradient).norm()) for name, gradient in theirs.items()}
    size = {name: float(gradient.norm()) for name, gradient in theirs.items()}
    whole = (sum(d**2 for d in distance.values()) / sum(s**2 for s in size.values())) ** 0.5
    return {"whole": whole, "largest_matrix": max(distance.values()) / max(size.values())}


def _random_model(path: str, args: argparse.Namespace) -> Any:
    """Return an AudioFlamingo3 of the demo's audio side and a language model of another shape, with random weights."""
    demo: Any = AutoConfig.from_pretrained(path)
    config = AudioFlamingo3Config(
        audio_config=demo.audio_config.to_dict(), text_config=SHAPES[args.shape], audio_token_id=demo.audio_token_id
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AudioFlamingo3ForConditionalGeneration._from_config(
            config, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
        )
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    return model.to(args.device)


@contextmanager
def peft_defaults(policy: Policy) -> Iterator[None]:
    """Let peft compute the adapters, their inputs cast to their own precision, as it does unless told otherwise."""
    layers: list[Any] = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    with plain_forward(policy):
        yield
    for layer, value in zip(layers, before, strict=True):
        layer.cast_input_dtype_enabled = value


def _saved_bytes(policy: Policy, tokens: int) -> int:
    """Return the bytes of distinct storages that one forward of the language model saves, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weight = policy.model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    embeddings = torch.zeros(1, tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    with peft_defaults(policy), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.language_model(inputs_embeds=embeddings, use_cache=False)
    return sum(sizes.values())

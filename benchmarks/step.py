"""Time one GRPO/LEAF training step done four ways: same weights, same prompts, and (a to c) the same tokens.

    python benchmarks/step.py [--prompt-tokens 100 300 750] [--completions 4 8 16 32] [--lengths 24 50] [--resume]

Every prompt has exactly P tokens: recorded speech (25 tokens per second), an instruction and filler text. Every
completion has exactly R tokens: an end token ends nothing. One step is N prompts with K completions each, sampled at
temperature 1 from the whole vocabulary, a reference forward and one optimiser step of LoRA (learning rate 0, so that
the weights stay) with the clipped loss and the k3 divergence. Rewards are random numbers: scoring texts is in no arm's
time. No arm uses gradient checkpointing.

a leaf       Prompts embedded once (processor, audio encoder, projector) and prefilled once, K completions decoded. The
             prefix tree and LEAF's credit. One tree-packed reference forward, then packed forward and backward in
             micro-batches of `--token-budget` tokens, as `LeafTrainer` does on-policy.
b stock      `generate(num_return_sequences=K)` with the audio. Then per prompt a batch of K copies, audio included:
             reference forward, forward and backward, logits at the completion's positions only. The processor runs
             once; its tensors serve sampling and update. A step is sampler plus update: its credit is not counted.
             peft as it comes: float32 adapters on inputs cast to float32 (leaf's policy may compute them otherwise).
c published  As b, but one completion per micro-batch: K reference forwards, K forwards and backwards per prompt. Its
             sampler is b's and is not run again.
d trl        `trl.GRPOTrainer` on the language model alone (the same tensors, the same adapter), a text prompt of P
             tokens, no audio, so d does less work than the others. Micro-batch K, N accumulated, beta above 0, other
             settings at their defaults (bf16 autocast with bfloat16 weights) but for gradient checkpointing, off.
             Its sampler is what passes in `_generate`; its update lasts from there to the end of the optimiser step.

The update of b and c runs on the tokens and advantages of a; the gradients of all three are compared.

Times: a first run of every arm, then `--repeats` rounds in which the arms take turns; medians with range. An arm whose
first run takes longer than `--slow` seconds is not run again; its first run then counts (`runs` in the record).
`busy` is the least share of its wall time that an arm computed, per thread: well below 1, others used the machine.
Peak memory: the first run's peak above what was in use just before the sampler or the update. On the CPU it is the
resident high-water mark, reset through /proc/self/clear_refs after malloc_trim, so it includes what the allocator
wastes; on CUDA it is the peak of PyTorch's allocator.

Floor of a's update: see FLOOR below; it is written to the results.
"""

import argparse
import copy
import ctypes
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
    AutoModelForCausalLM,
    AutoProcessor,
    GenerationConfig,
)
from transformers.utils import logging

from leaf.credit import credit_rule, policy_loss, token_weights
from leaf.demo_model import resolve_model
from leaf.speech.audio import load_audio
from leaf.speech.policy import Policy
from leaf.speech.sampling import Group, sample
from leaf.tasks import load
from leaf.training import step_generator

ARMS = ("leaf", "stock", "published", "trl")
FLOOR = (
    "floor = FLOP / rate; FLOP = 6 · (packed tokens · weights of the language model's linear layers + head rows · "
    "weights of the head), which is 2 per row and weight for each of: reference forward, forward, backward to "
    "activations. The rate is measured in this process on those three products of all linear layers, one layer after "
    "another with the model's own weights, dtype and threads, rows as in the largest micro-batch. Embedding table, "
    "attention, norms, LoRA, loss and optimiser are not in the floor."
)
# What the process grows by per byte of live tensors: glibc's heap keeps holes (measured here: 1.6 to 2.3).
WASTE = {"cpu": 2.3, "cuda": 1.1}
RATE = 16000  # Hz
SAMPLES_PER_TOKEN = 640  # 40 ms of audio become one position of the prompt
AUDIO_SHARE = 0.7  # of the prompt, up to LONGEST_AUDIO
LONGEST_AUDIO = 175  # tokens: 7 s, below the 8 s that the demo's encoder sees
KL_COEF = 0.02
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES = {  # language models with random weights, by the published configuration of that name
    "granite-1b": {  # ibm-granite/granite-4.0-1b, without its four constant multipliers
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 4096, "vocab_size": 100352,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Name one point of the grid: P prompt tokens, K completions, R tokens each."""

    prompt_tokens: int
    completions: int
    length: int


# -- measuring ---------------------------------------------------------------------------------------------------------
class Meter:
    """Take seconds and, if asked, peak memory in bytes of named phases."""

    def __init__(self, device: torch.device, *, memory: bool):
        self.cuda = device.type == "cuda"
        self.memory = memory
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, int] = {}
        self.computed = 0.0  # CPU seconds of the phases, all threads
        self._name, self._resident, self._began, self._computed = "", 0, 0.0, 0.0

    def start(self, name: str) -> None:
        """Begin a phase."""
        self._name = name
        if self.memory:
            self._resident = self._reset_peak()
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


# -- model -------------------------------------------------------------------------------------------------------------
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


def make_bench(args: argparse.Namespace) -> Bench:
    """Load the policy with an adapter that is not zero, so that A and B have gradients and the divergence is real."""
    lora = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=list(LORA_LAYERS))
    options: dict[str, Any] = {"lora": lora, "token_budget": args.token_budget}
    path = resolve_model(args.model)
    if args.shape is None:
        policy = Policy.load(path, dtype=args.dtype, device=args.device, **options)
    else:
        policy = Policy.wrap(_random_model(path, args), AutoProcessor.from_pretrained(path), **options)
    policy.eos_token_ids = (-1,)  # nothing ends a completion before R tokens
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.005)
    return Bench(args, policy, parameters, torch.optim.AdamW(parameters.values(), lr=0.0))


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


# -- prompts -----------------------------------------------------------------------------------------------------------
def make_rows(bench: Bench, tokens: int) -> list[dict[str, Any]]:
    """Return N rows whose prompts have exactly `tokens` tokens: text first, audio cut to fill the rest."""
    data = load("asterisk_asr", "train").shuffle(seed=tokens)
    audio_tokens = min(LONGEST_AUDIO, int(AUDIO_SHARE * tokens))
    rows = []
    for number in range(bench.args.prompts):
        own = data.select(range(number * 200, number * 200 + 200))
        sentences = own["text"][:]
        text, rendered, used = _instruction(bench, sentences, tokens - audio_tokens)
        files = [name for parts in own["audio"][:12] for name in parts]
        wave = load_audio(files, sampling_rate=RATE)[: (tokens - used) * SAMPLES_PER_TOKEN]
        rows.append({"prompt": text, "rendered": rendered, "audio": {"array": wave, "sampling_rate": RATE}})
    return rows


def _instruction(bench: Bench, sentences: list[str], limit: int) -> tuple[str, str, int]:
    """Return an instruction with as many of the sentences as fit in `limit` tokens, rendered, and its tokens."""
    text = "Write down what the speaker says."
    best = _measured(bench, text)
    for count in range(1, len(sentences) + 1):
        longer = _measured(bench, "\n".join([text, "Messages heard before:", *sentences[:count]]))
        if longer[2] > limit:
            break
        best = longer
    return best


def _measured(bench: Bench, text: str) -> tuple[str, str, int]:
    """Return a text, rendered as a prompt, and the tokens of that without the audio's placeholder."""
    rendered = _render(bench.policy.processor, text)
    return text, rendered, len(bench.policy.tokenizer(rendered, add_special_tokens=False)["input_ids"]) - 1


def _render(processor: Any, text: str) -> str:
    content = [{"type": "audio", "audio": ""}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def text_prompt(bench: Bench, row: dict[str, Any], number: int, tokens: int) -> str:
    """Return a text of exactly `tokens` tokens, the instruction of the row followed by filler words."""
    lines = load("asterisk_asr", "train")["text"][number * 200 : number * 200 + 300]
    words = " ".join(lines).split()
    text = row["prompt"]

    def size(text: str) -> int:
        return len(bench.policy.tokenizer(text)["input_ids"])

    for word in words:
        if size(f"{text} {word}") <= tokens:
            text = f"{text} {word}"
    while size(text) < tokens:
        text += " and"
    if size(text) != tokens:
        raise AssertionError(f"The text prompt has {size(text)} tokens, not {tokens}.")
    return text


# -- arm a -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Work:
    """Hold what the updates of a, b and c run on: advantages and loss weights (K, R) per group."""

    groups: list[Group]
    advantages: list[Tensor]
    weights: list[Tensor]


def leaf_step(bench: Bench, cell: Cell, rows: list[dict[str, Any]], meter: Meter) -> Work:
    """Run arm a."""
    policy, device = bench.policy, torch.device(bench.args.device)
    with meter.phase("sample"):
        groups = sample(
            policy, policy.embed(rows), num_completions=cell.completions, max_new_tokens=cell.length,
            temperature=1.0, top_p=bench.args.top_p, generator=step_generator(0, 0),
        )  # fmt: skip
    with meter.phase("credit"):
        generator = torch.Generator().manual_seed(1)
        rewards = [torch.rand(cell.completions, generator=generator, dtype=torch.float64) for _ in groups]
        rule = credit_rule("leaf")
        advantages = [
            rule(group.tree, reward, surprisal=group.surprisal).float().to(device)
            for group, reward in zip(groups, rewards, strict=True)
        ]
        weights = token_weights([(group.tree.node >= 0).to(device) for group in groups])
    work = Work(groups, advantages, weights)
    with meter.phase("update"):
        leaf_update(bench, work)
    return work


def leaf_update(bench: Bench, work: Work) -> None:
    """Run a's reference and update."""
    policy, device = bench.policy, torch.device(bench.args.device)
    prompts, trees = [g.prompt for g in work.groups], [g.tree for g in work.groups]
    with torch.no_grad(), policy.reference():
        reference = policy(prompts, trees).log_probs
    for batch in policy.batches(prompts, trees):
        scores = policy([prompts[i] for i in batch], [trees[i] for i in batch])
        loss = torch.zeros((), device=device)
        for new, i in zip(scores.log_probs, batch, strict=True):
            mask = (trees[i].node >= 0).to(device)
            loss = loss + _loss(new, reference[i], work.advantages[i], mask, work.weights[i])
        loss.backward()
    _finish(bench, "leaf")


def _loss(new: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    return policy_loss(
        new, new.detach(), advantages, mask, weights=weights, ref_logp=reference, kl_coef=KL_COEF
    )[0]  # fmt: skip


def _finish(bench: Bench, arm: str) -> None:
    """Clip, step and clear the gradients, keeping a copy of them if asked."""
    if bench.keep:
        found = {name: p.grad for name, p in bench.parameters.items() if p.grad is not None}
        bench.gradients[arm] = {name: gradient.clone() for name, gradient in found.items()}
    torch.nn.utils.clip_grad_norm_(list(bench.parameters.values()), 1.0)
    bench.optimizer.step()
    bench.optimizer.zero_grad()


# -- arms b and c ------------------------------------------------------------------------------------------------------
@contextmanager
def peft_defaults(policy: Policy) -> Iterator[None]:
    """Let adapters cast their inputs to their own precision, as peft does unless told otherwise."""
    layers: list[Any] = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    yield
    for layer, value in zip(layers, before, strict=True):
        layer.cast_input_dtype_enabled = value


def stock_inputs(bench: Bench, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Run the processor as its model card does."""
    batch = bench.policy.processor(
        text=[row["rendered"] for row in rows],
        audio=[row["audio"]["array"] for row in rows],
        text_kwargs={"padding": True},
        audio_kwargs={"sampling_rate": RATE},
        return_tensors="pt",
    )
    found = {key: batch[key] for key in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    dtype = bench.base.dtype
    return {k: v.to(bench.args.device, dtype if v.is_floating_point() else None) for k, v in found.items()}


def stock_sample(bench: Bench, cell: Cell, rows: list[dict[str, Any]], meter: Meter) -> dict[str, Tensor]:
    """Sample as b and c do; return the processor's tensors."""
    torch.manual_seed(0)
    with meter.phase("sample"):
        inputs = stock_inputs(bench, rows)
        with torch.no_grad(), peft_defaults(bench.policy):
            out = bench.base.generate(
                **inputs, num_return_sequences=cell.completions, do_sample=True, temperature=1.0,
                top_p=bench.args.top_p, top_k=0, max_new_tokens=cell.length, min_new_tokens=cell.length,
            )  # fmt: skip
    expected = (len(rows) * cell.completions, cell.prompt_tokens + cell.length)
    if out.shape != expected or any(value.shape[0] != len(rows) for value in inputs.values()):
        raise AssertionError(f"generate returned {tuple(out.shape)} for {expected}, or a prompt was cut in windows.")
    return inputs


def stock_update(bench: Bench, inputs: dict[str, Tensor], work: Work, micro: int, arm: str) -> None:
    """Run the reference and update of b (`micro` K) or c (`micro` 1) on the tokens of a."""
    device = torch.device(bench.args.device)
    for i, group in enumerate(work.groups):
        prompt = {key: value[i : i + 1] for key, value in inputs.items()}
        for first in range(0, group.tokens.shape[0], micro):
            part = slice(first, first + micro)
            tokens = group.tokens[part].to(device)
            with torch.no_grad(), bench.policy.reference():
                reference = _stock_log_probs(bench, prompt, tokens)
            new = _stock_log_probs(bench, prompt, tokens)
            mask = torch.ones_like(tokens, dtype=torch.bool)
            _loss(new, reference, work.advantages[i][part], mask, work.weights[i][part]).backward()
    _finish(bench, arm)


def _stock_log_probs(bench: Bench, prompt: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Return (rows, R) log-probabilities of completions from copies of one prompt, audio included."""
    copies = {key: value.repeat_interleave(tokens.shape[0], 0) for key, value in prompt.items()}
    copies["input_ids"] = torch.cat([copies["input_ids"], tokens], 1)
    copies["attention_mask"] = torch.cat([copies["attention_mask"], torch.ones_like(tokens)], 1)
    # Positions, not a count: behind a slice (not contiguous) PyTorch's matmul copies the frozen head for every row.
    positions = torch.arange(prompt["input_ids"].shape[1] - 1, copies["input_ids"].shape[1] - 1, device=tokens.device)
    logits = bench.base(**copies, logits_to_keep=positions, use_cache=False).logits.float()
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


# -- arm d -------------------------------------------------------------------------------------------------------------
class Trl:
    """Run single steps of TRL's GRPOTrainer on the language model; one object per cell."""

    def __init__(self, bench: Bench, cell: Cell, rows: list[dict[str, Any]]):
        from datasets import Dataset
        from transformers import PrinterCallback, TrainerCallback
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        class Timed(GRPOTrainer):
            meter: Meter

            def _generate(self, prompts: list) -> Any:
                with self.meter.phase("sample"):
                    out = super()._generate(prompts)
                self.meter.start("update")
                return out

        class End(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                trainer.meter.stop()

        args = bench.args
        prompts = [text_prompt(bench, row, i, cell.prompt_tokens) for i, row in enumerate(rows)]
        self.folder = tempfile.TemporaryDirectory()
        config = GRPOConfig(
            output_dir=self.folder.name, max_steps=1, learning_rate=0.0, beta=KL_COEF,
            per_device_train_batch_size=cell.completions, gradient_accumulation_steps=len(rows),
            num_generations=cell.completions, max_completion_length=cell.length, top_p=args.top_p,
            generation_kwargs={"min_new_tokens": cell.length}, bf16=args.dtype == "bfloat16",
            gradient_checkpointing=False, use_cpu=args.device == "cpu", report_to="none", save_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1)

        def reward(completions: list, **columns: Any) -> list[float | None]:
            return torch.rand(len(completions), generator=generator).tolist()

        trainer = Timed(
            model=_language_model(bench),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=bench.policy.tokenizer,
            peft_config=peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=list(LORA_LAYERS)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(End)
        assert trainer.model is not None
        _copy_adapter(bench, trainer.model)
        self.trainer = trainer

    def step(self, meter: Meter) -> None:
        """Take one step."""
        self.trainer.meter = meter
        self.trainer.train()


def _language_model(bench: Bench) -> Any:
    """Return a causal language model that holds the very tensors of the policy's, without its adapter."""
    # A copy: training leaves use_cache off in it, and the next cell would sample without a cache.
    config = copy.deepcopy(bench.base.config.get_text_config(decoder=True))
    config.use_cache = True
    with torch.device(bench.args.device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, bench.args.dtype), attn_implementation="sdpa"
        )
    state = bench.policy.language_model.state_dict()
    names = {name: name.replace(".base_layer.", ".") for name in state if ".lora_" not in name}
    tensors = {f"model.{new}": state[old] for old, new in names.items()}
    model.load_state_dict(tensors | {"lm_head.weight": bench.base.get_output_embeddings().weight.detach()}, assign=True)
    return model.requires_grad_(False)


def _copy_adapter(bench: Bench, model: nn.Module) -> None:
    """Copy the policy's adapter into TRL's; both name it by layer."""

    def layer(name: str) -> str:
        return name[name.index("layers.") :]

    ours = {layer(name): parameter for name, parameter in bench.parameters.items()}
    theirs = {layer(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if ours.keys() != theirs.keys():
        raise AssertionError(f"The adapters differ: {sorted(ours.keys() ^ theirs.keys())[:4]}.")
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])


# -- what fits, and the floor ------------------------------------------------------------------------------------------
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


def estimate(bench: Bench, cell: Cell, arm: str) -> float:
    """Return the bytes an arm is expected to need above the weights: the larger of sampler and update.

    Update: saved activations of the largest micro-batch, and 12 bytes per logit (float32 logits, their log-softmax and
    their gradient). Sampler: the cache, and the widest layer's inputs and outputs while prefilling. Both times WASTE.
    """
    prompts, size, width = bench.args.prompts, cell.completions, cell.prompt_tokens + cell.length
    config = bench.base.config.get_text_config(decoder=True)
    item = torch.finfo(getattr(torch, bench.args.dtype)).bits // 8
    row = cell.prompt_tokens + size * cell.length  # no shared prefix: the worst case
    tokens = {
        "leaf": max(row, min(prompts * row, bench.args.token_budget)),
        "stock": size * width,
        "published": width,
        "trl": size * width,
    }[arm]
    heads = size * cell.length if arm in ("leaf", "stock") else cell.length
    update = tokens * bench.activation_bytes + 12 * heads * config.vocab_size
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * item
    prefilled = prompts * cell.prompt_tokens * (1 if arm == "leaf" else size)
    sampler = prompts * size * width * cached + prefilled * 4 * config.intermediate_size * item
    return max(update, sampler) * WASTE[torch.device(bench.args.device).type]


def matmul_rate(bench: Bench, rows: int, repeats: int = 5) -> float:
    """Return FLOP/s of two forward products and one backward to activations of all linear layers; see FLOOR."""
    device, dtype = torch.device(bench.args.device), getattr(torch, bench.args.dtype)
    widths = {width for weight in bench.linears for width in weight.shape}
    given = {width: torch.randn(rows, width, device=device, dtype=dtype) for width in widths}
    forward, backward = [], []
    for _ in range(repeats + 1):  # the first is a warm-up
        meter = Meter(device, memory=False)
        with meter.phase("forward"):
            for weight in bench.linears:
                nn.functional.linear(given[weight.shape[1]], weight)
        with meter.phase("backward"):
            for weight in reversed(bench.linears):
                torch.matmul(given[weight.shape[0]], weight)
        forward.append(meter.seconds["forward"])
        backward.append(meter.seconds["backward"])
    return 6 * rows * bench.weights / (2 * statistics.median(forward[1:]) + statistics.median(backward[1:]))


def floor_record(bench: Bench, work: Work, update_s: float) -> dict[str, Any]:
    """Return the arithmetic floor of a's update beside what it took."""
    lengths = [g.prompt.length + int((~g.tree.is_leaf).sum()) for g in work.groups]
    batches = bench.policy.batches([g.prompt for g in work.groups], [g.tree for g in work.groups])
    rows = max(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    head = sum(torch.unique(g.tree.parent).shape[0] for g in work.groups)
    vocabulary, width = bench.base.get_output_embeddings().weight.shape
    flop = 6 * (sum(lengths) * bench.weights + head * vocabulary * width)
    rate = matmul_rate(bench, rows)
    return {
        "packed_tokens": sum(lengths), "head_rows": head, "rows_of_largest_micro_batch": rows,
        "linear_weights": bench.weights, "head_weights": vocabulary * width, "tflop": round(flop / 1e12, 4),
        "gflop_per_s": round(rate / 1e9, 1), "floor_s": round(flop / rate, 4),
        "update_over_floor": round(update_s * rate / flop, 3),
    }  # fmt: skip


def update_flop(bench: Bench, cell: Cell, arm: str, floor: dict[str, Any]) -> float:
    """Return the FLOP of the linear layers and head that an arm's update runs, counted as for the floor."""
    if arm == "leaf":
        return floor["tflop"] * 1e12
    rows = bench.args.prompts * cell.completions
    return 6.0 * rows * ((cell.prompt_tokens + cell.length) * bench.weights + cell.length * floor["head_weights"])


# -- one cell ----------------------------------------------------------------------------------------------------------
@dataclass
class Timings:
    """Collect one arm's runs in a cell."""

    runs: list[dict[str, float]] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=dict)
    busy: float = 1.0
    slow: bool = False

    def add(self, meter: Meter, slow: float) -> None:
        """Take a run in; the first one is kept only if it was slow."""
        if meter.memory:
            self.peak = meter.peak
            self.slow = sum(meter.seconds.values()) > slow
        if not meter.memory or self.slow:
            self.runs.append(meter.seconds)
            self.busy = min(self.busy, meter.computed / sum(meter.seconds.values()) / torch.get_num_threads())


def run_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Measure every arm in one cell and return its record."""
    args, device = bench.args, torch.device(bench.args.device)
    estimates = {arm: estimate(bench, cell, arm) for arm in args.arms}
    arms = [arm for arm in args.arms if estimates[arm] <= args.memory_limit * 1e9]
    rows = make_rows(bench, cell.prompt_tokens)
    trl = Trl(bench, cell, rows) if "trl" in arms else None
    timings = {arm: Timings() for arm in arms}
    work = leaf_step(bench, cell, rows, Meter(device, memory=False))  # the tokens of the cell; later runs repeat them
    _check(cell, work)
    bench.gradients.clear()
    for number in range(args.repeats + 1):
        bench.keep = number == 0
        for arm in arms if number % 2 == 0 else arms[::-1]:
            if timings[arm].slow:
                continue
            meter = Meter(device, memory=number == 0)
            run_arm(bench, cell, arm, rows, work, trl, meter, sampled="stock" in arms)
            timings[arm].add(meter, args.slow)
            print(f"  {arm}: " + ", ".join(f"{k} {v:.2f} s" for k, v in meter.seconds.items()), flush=True)
    return _record(bench, cell, work, timings, estimates)


def run_arm(
    bench: Bench, cell: Cell, arm: str, rows: list[dict[str, Any]], work: Work, trl: Trl | None, meter: Meter,
    *, sampled: bool,
) -> None:  # fmt: skip
    """Run one arm once. `sampled`: b runs in this cell too, and c need not run the same sampler again."""
    if arm == "leaf":
        leaf_step(bench, cell, rows, meter)
    elif arm == "trl":
        assert trl is not None
        trl.step(meter)
    else:
        shared = arm == "published" and sampled
        inputs = stock_inputs(bench, rows) if shared else stock_sample(bench, cell, rows, meter)
        with meter.phase("update"), peft_defaults(bench.policy):
            stock_update(bench, inputs, work, cell.completions if arm == "stock" else 1, arm)


def _check(cell: Cell, work: Work) -> None:
    for group in work.groups:
        if group.prompt.length != cell.prompt_tokens or group.lengths.tolist() != [cell.length] * cell.completions:
            raise AssertionError(f"{cell} came out as {group.prompt.length} tokens and {group.lengths.tolist()}.")


def gradient_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Return ‖Δ‖ over the whole gradient, and the largest of one matrix over the largest matrix, both relative."""
    distance = {name: float((ours[name] - gradient).norm()) for name, gradient in theirs.items()}
    size = {name: float(gradient.norm()) for name, gradient in theirs.items()}
    whole = (sum(d**2 for d in distance.values()) / sum(s**2 for s in size.values())) ** 0.5
    return {"whole": whole, "largest_matrix": max(distance.values()) / max(size.values())}


def _record(
    bench: Bench, cell: Cell, work: Work, timings: dict[str, Timings], estimates: dict[str, float]
) -> dict[str, Any]:
    nodes = [group.tree.num_nodes for group in work.groups]
    total = cell.completions * cell.length
    arms = {arm: _arm_record(arm, timings, estimates[arm], bench.args.memory_limit) for arm in estimates}
    record = asdict(cell) | {
        "prompts": len(work.groups),
        "nodes_per_group": nodes,
        "distinct_over_total": round(sum(nodes) / (total * len(nodes)), 3),
        "arms": arms,
        "gradient_difference_to_leaf": {
            arm: gradient_difference(bench.gradients["leaf"], gradient)
            for arm, gradient in bench.gradients.items()
            if arm != "leaf" and "leaf" in bench.gradients
        },
    }
    if "leaf" in timings:
        record["floor"] = floor = floor_record(bench, work, arms["leaf"]["update_s"]["median"])
        record["leaf_against"] = {arm: _ratios(arms["leaf"], arms[arm]) for arm in timings if arm != "leaf"}
        if bench.args.peak_tflops:
            for arm in timings:
                rate = update_flop(bench, cell, arm, floor) / arms[arm]["update_s"]["median"]
                arms[arm]["update_flop_utilisation"] = round(rate / bench.args.peak_tflops / 1e12, 4)
    return record


def _arm_record(arm: str, timings: dict[str, Timings], estimated: float, limit: float) -> dict[str, Any]:
    if arm not in timings:
        return {"does_not_fit": {"estimated_gb": round(estimated / 1e9, 2), "limit_gb": limit}}
    runs, peak = timings[arm].runs, timings[arm].peak
    record: dict[str, Any] = {"runs": len(runs), "first_run_counted": timings[arm].slow}
    record["busy"] = round(timings[arm].busy, 2)
    if "sample" not in runs[0]:  # c takes b's sampler
        shared = statistics.median(run["sample"] for run in timings["stock"].runs)
        runs = [run | {"sample": shared} for run in runs]
    for stage in runs[0]:
        record[f"{stage}_s"] = summary([run[stage] for run in runs])
    record["step_s"] = summary([sum(run.values()) for run in runs])
    record |= {f"peak_{stage}_mb": round(value / 1e6, 1) for stage, value in peak.items() if stage != "credit"}
    return record | {"estimated_mb": round(estimated / 1e6, 1)}


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return how many times faster and smaller a is, by medians."""
    stages = ("sample", "update", "step")
    times = {stage: theirs[f"{stage}_s"]["median"] / ours[f"{stage}_s"]["median"] for stage in stages}
    times["peak_update"] = theirs["peak_update_mb"] / max(ours["peak_update_mb"], 0.1)
    return {name: round(value, 2) for name, value in times.items()}


# -- tables ------------------------------------------------------------------------------------------------------------
def tables(cells: list[dict[str, Any]]) -> str:
    """Return the results as markdown."""
    cells = sorted(cells, key=lambda c: (c["prompt_tokens"], c["length"], c["completions"]))
    parts = [_table("Seconds: sampler / update / step (memory: peak of the update, MB)", cells, _seconds)]
    parts.append(_table("Times slower than leaf: sampler / update / step (peak memory of the update)", cells, _slower))
    parts.append(_floor_table(cells))
    chosen = [c for c in cells if c["prompt_tokens"] == 300 and c["length"] == 24]
    parts.append(_growth_table("Step at K over step at K = 8 (P = 300, R = 24)", chosen, "completions", 8))
    chosen = [c for c in cells if c["completions"] == 8 and c["length"] == 24]
    parts.append(_growth_table("Step at P over step at P = 100 (K = 8, R = 24)", chosen, "prompt_tokens", 100))
    return "\n\n".join(part for part in parts if part)


def _rows(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _table(title: str, cells: list[dict[str, Any]], show: Callable[[dict[str, Any], str], str]) -> str:
    head = ["P", "K", "R", "distinct", *ARMS]
    return _rows(
        title, head, [[*_key(c), str(c["distinct_over_total"]), *(show(c, arm) for arm in ARMS)] for c in cells]
    )


def _key(cell: dict[str, Any]) -> list[str]:
    return [str(cell[name]) for name in ("prompt_tokens", "completions", "length")]


def _seconds(cell: dict[str, Any], arm: str) -> str:
    record = cell["arms"].get(arm)
    if record is None:
        return "not run"
    if "does_not_fit" in record:
        return f"does not fit ({record['does_not_fit']['estimated_gb']:.0f} GB)"
    stages = " / ".join(f"{record[f'{stage}_s']['median']:.2f}" for stage in ("sample", "update", "step"))
    return f"{stages} ({record['peak_update_mb']:.0f})"


def _slower(cell: dict[str, Any], arm: str) -> str:
    if arm not in cell.get("leaf_against", {}):
        return "1" if arm == "leaf" else "–"
    ratio = cell["leaf_against"][arm]
    return f"{ratio['sample']} / {ratio['update']} / {ratio['step']} ({ratio['peak_update']})"


def _floor_table(cells: list[dict[str, Any]]) -> str:
    head = ["P", "K", "R", "packed tokens", "TFLOP", "GFLOP/s", "floor s", "update s", "update / floor", "utilisation"]
    shown = ("packed_tokens", "tflop", "gflop_per_s", "floor_s", "update_s", "update_over_floor")
    rows = []
    for cell in (cell for cell in cells if "floor" in cell):
        floor = cell["floor"] | {"update_s": cell["arms"]["leaf"]["update_s"]["median"]}
        shares = {arm: record.get("update_flop_utilisation") for arm, record in cell["arms"].items()}
        used = ", ".join(f"{arm} {share:.0%}" for arm, share in shares.items() if share is not None)
        rows.append([*_key(cell), *(str(floor[name]) for name in shown), used or "–"])
    return _rows("Update of leaf against its arithmetic floor", head, rows) if rows else ""


def _growth_table(title: str, cells: list[dict[str, Any]], name: str, origin: int) -> str:
    base = next((c for c in cells if c[name] == origin), None)
    if base is None or len(cells) < 2:
        return ""

    def growth(cell: dict[str, Any], arm: str) -> str:
        pair = [c["arms"].get(arm, {}).get("step_s", {}).get("median") for c in (cell, base)]
        return "–" if None in pair else f"{pair[0] / pair[1]:.2f}"

    return _rows(title, [name, *ARMS], [[str(c[name]), *(growth(c, arm) for arm in ARMS)] for c in cells])


# -- main --------------------------------------------------------------------------------------------------------------
def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, base or a checkpoint of AudioFlamingo3")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="language model of this shape with random weights")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[100, 300, 750], help="P")
    parser.add_argument("--completions", type=int, nargs="+", default=[4, 8, 16, 32], help="K")
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 50], help="R")
    parser.add_argument("--prompts", type=int, default=4, help="N, prompts per step")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds after the first run")
    parser.add_argument("--slow", type=float, default=300.0, help="seconds of a first run beyond which it is the only")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter; alpha is twice that")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--token-budget", type=int, default=768, help="padded tokens of one packed forward (arm a)")
    parser.add_argument("--memory-limit", type=float, default=12.0, help="GB an arm may need above the weights")
    parser.add_argument("--peak-tflops", type=float, help="of the device: also report the share of it that is used")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "step.json")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the output file")
    args = parser.parse_args()
    args.arms = [arm for arm in ARMS if arm in args.arms]
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what must be equal for cells to stand in one file."""
    names = (
        "model", "shape", "prompts", "dtype", "device", "threads", "rank", "top_p", "token_budget", "repeats", "slow",
        "memory_limit", "peak_tflops",
    )  # fmt: skip
    where = torch.cuda.get_device_name() if torch.device(args.device).type == "cuda" else platform.machine()
    return {name: getattr(args, name) for name in names} | {"machine": where, "torch": torch.__version__}


def _finished(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cells of an earlier run of the same settings."""
    if not args.resume or not args.output.exists():
        return []
    earlier = json.loads(args.output.read_text(encoding="utf-8"))
    if earlier["settings"] != settings(args):
        raise SystemExit(f"{args.output} holds other settings: {earlier['settings']}. Name another --output.")
    return earlier["cells"]


def _write(args: argparse.Namespace, cells: list[dict[str, Any]]) -> None:
    result = {"settings": settings(args), "floor": FLOOR, "cells": cells}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    new = args.output.with_suffix(".part")
    new.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    new.replace(args.output)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    cells = _finished(args)
    done = {tuple(_key(cell)) for cell in cells if set(args.arms) <= cell["arms"].keys()}
    bench = make_bench(args)
    grid = [Cell(p, k, r) for r in args.lengths for p in args.prompt_tokens for k in args.completions]
    for cell in grid:
        if tuple(_key(asdict(cell))) in done:
            continue
        print(f"{cell}", flush=True)
        record = run_cell(bench, cell)
        cells = [old for old in cells if _key(old) != _key(record)] + [record]
        _write(args, cells)
    print(tables(cells))


if __name__ == "__main__":
    main()

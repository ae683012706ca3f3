"""Parts `step_1b` and `step_3b`: one rl step of leaf, of stock transformers and of one completion per micro-batch.

The arms are those of benchmarks.step, on text prompts of random token ids: no audio, and no processor in any time.
"""

from argparse import Namespace
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration, GenerationConfig

from benchmarks.gpu.part import Result
from benchmarks.step.arms import Work, leaf_credit, leaf_update, stock_generate, stock_update
from benchmarks.step.bench import LORA_LAYERS, SHAPES, Bench, Cell, Meter, gradients_differ, peft_defaults, set_adapter
from benchmarks.step.floor import floor_record
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import sample
from tests.helpers.models.common import flamingo_encoder
from tests.helpers.tiny import tiny_model

ARMS = ("leaf", "stock", "published")
PROMPTS = 4
_3B = {
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
_TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_TINY |= {"num_hidden_layers": 2, "vocab_size": 400}


def steps(size: str, device: torch.device, small: bool, result: Result) -> None:
    """Measure the arms in every cell."""
    dtype = "float32" if small else "bfloat16"
    bench = make_bench({**SHAPES["granite-1b"], **(_TINY if small else _3B if size == "3b" else {})}, device, dtype)
    result.content["weights_of_linear_layers"] = bench.weights
    cells = [Cell(20, 3, 4)] if small else [Cell(300, 8, 24), Cell(300, 8, 100), Cell(300, 32, 50)]
    peak = result.content["peak_tflops"]
    for cell in cells:
        measure_cell(bench, cell, device, peak, 1 if small else 2, result)


def make_bench(shape: dict[str, Any], device: torch.device, dtype: str) -> Bench:
    """Make a policy on a language model of a shape with random weights."""
    config = AudioFlamingo3Config(audio_config=flamingo_encoder(100), text_config=shape, audio_token_id=3)
    torch.manual_seed(0)
    with torch.device(device):
        model = AudioFlamingo3ForConditionalGeneration._from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=list(LORA_LAYERS))
    policy = Policy.wrap(model.eval(), tiny_model()[1], lora=lora, token_budget=8192).to(device)
    policy.eos_token_ids = (-1,)
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    set_adapter(parameters)
    args = Namespace(device=str(device), dtype=dtype, rank=16, top_p=1.0, prompts=PROMPTS, token_budget=8192)
    return Bench(args, policy, parameters, torch.optim.AdamW(parameters.values(), lr=0.0))


def measure_cell(
    bench: Bench, cell: Cell, device: torch.device, peak: float | None, repeats: int, result: Result
) -> None:
    """Measure the arms on the same prompts and, but for the sampler, the same tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, bench.policy.text_config.vocab_size, (PROMPTS, cell.prompt_tokens), generator=generator)
    inputs = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    with torch.no_grad():
        embedded = bench.policy.embed_tokens(inputs["input_ids"])
    prompts = [Prompt(row, torch.zeros(len(row), dtype=torch.bool, device=device)) for row in embedded]
    named = {"prompt_tokens": cell.prompt_tokens, "completions": cell.completions, "length": cell.length}
    bench.gradients.clear()
    bench.keep = True
    try:
        work = draw(bench, cell, prompts)
    except Exception as error:  # noted for every arm: without tokens none can run
        message = f"{type(error).__name__}: {error}"
        for arm in ARMS:
            result.add({**named, "arm": arm}, lambda message=message: _fail(message))
        return
    for arm in ARMS:
        result.add(
            {**named, "arm": arm},
            lambda arm=arm: measure_arm(bench, cell, arm, prompts, inputs, work, repeats, peak),
        )


def _fail(message: str) -> dict[str, Any]:
    raise RuntimeError(f"leaf drew no completions: {message}")


def draw(bench: Bench, cell: Cell, prompts: list[Prompt]) -> Work:
    """Draw leaf's completions and credit them."""
    groups = sample(
        bench.policy,
        prompts,
        num_completions=cell.completions,
        max_new_tokens=cell.length,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    return leaf_credit(groups, torch.device(bench.args.device))


def measure_arm(
    bench: Bench,
    cell: Cell,
    arm: str,
    prompts: list[Prompt],
    inputs: dict[str, Tensor],
    work: Work,
    repeats: int,
    peak: float | None,
) -> dict[str, Any]:
    """Run an arm once for its memory and some times for its seconds, of which the smallest counts."""
    device, runs, peaks = torch.device(bench.args.device), [], {}
    for number in range(repeats + 1):
        meter = Meter(device, memory=number == 0)
        with meter.phase("sample"):
            if arm == "leaf":
                draw(bench, cell, prompts)
            elif arm == "stock":  # and the published way, which shares its sampler
                stock_generate(bench, cell, inputs)
        with meter.phase("update"):
            if arm == "leaf":
                leaf_update(bench, work)
            else:
                with peft_defaults(bench.policy):
                    stock_update(bench, inputs, work, cell.completions if arm == "stock" else 1, arm)
        runs.append(meter.seconds)
        peaks = meter.peak or peaks
    best = {stage: min(run[stage] for run in runs[1:]) for stage in ("sample", "update")}
    made: dict[str, Any] = {f"{stage}_s": round(taken, 4) for stage, taken in best.items()}
    made |= {f"peak_{stage}_mb": round(size / 1e6, 1) for stage, size in peaks.items()}
    if arm == "published":
        made["sample_s"] = made["peak_sample_mb"] = None
    if arm == "leaf":
        took = {"update": best["update"], "step": sum(best.values()), "peak_update_mb": made["peak_update_mb"]}
        made["floor"] = floor = floor_record(bench, work, took)
        if peak:
            flop = floor["tflop"] + floor["attention_tflop"]
            made["update_flop_utilisation"] = round(flop / best["update"] / peak, 4)
    elif "leaf" in bench.gradients:
        made["gradient_difference"] = gradients_differ(bench.gradients["leaf"], bench.gradients[arm])
    return made

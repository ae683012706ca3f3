"""Arm d: TRL's GRPOTrainer on the language model alone."""

import copy
import tempfile
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.step.bench import KL_COEF, LORA_LAYERS, Bench, Cell, Meter
from benchmarks.step.prompts import text_prompt


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
            output_dir=self.folder.name,
            max_steps=1,
            learning_rate=0.0,
            beta=KL_COEF,
            per_device_train_batch_size=cell.completions,
            gradient_accumulation_steps=len(rows),
            num_generations=cell.completions,
            max_completion_length=cell.length,
            top_p=args.top_p,
            generation_kwargs={"min_new_tokens": cell.length},
            bf16=args.dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=args.device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
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

"""What tests/engines/test_trl.py runs in one process and in two: LeafGRPOTrainer on tiny models, and what it computed.

python -m torch.distributed.run --nproc_per_node 2 -m tests.helpers.trl_worker FOLDER RULE
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from trl.trainer.grpo_config import GRPOConfig

from leaf.engines.trl import LeafGRPOTrainer
from tests.helpers.models.common import TEXTS, decoder, train_tokenizer

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def text_model(seed=0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos="<|im_end|>", pad="<|endoftext|>")
    config = {name: value for name, value in decoder(tokenizer).items() if name != "bos_token_id"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.8)
    return model, tokenizer


def vision_model(seed=0) -> tuple[Any, Any]:
    """Make a LLaVA that sees four patches of an image of 28 pixels."""
    torch.manual_seed(seed)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    tokenizer = train_tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", named={"image_token": "<image>"})
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=decoder(tokenizer, model_type="llama", bos_token_id=None),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.8)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    return model, processor


def text_rows() -> Any:
    return Dataset.from_list([{"prompt": text} for text in TEXTS])


def image_rows() -> Any:
    colours = np.random.default_rng(0).integers(0, 255, (4, 28, 28, 3), dtype=np.uint8)
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": text}], "image": Image.fromarray(colour)}
            for text, colour in zip(TEXTS, colours, strict=True)
        ]
    )


def said(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


def letters(completions, **columns):
    """Score by the letters, some of them not at all, and all of a group alike now and then."""
    values = [sum(map(ord, said(one))) % 7 / 7 for one in completions]
    return [None if value > 0.8 else round(value, 1) for value in values]


def briefness(completions, **columns):
    return [1 / (1 + len(said(one))) for one in completions]


class Recording(LeafGRPOTrainer):
    """Keeps of every generation what an independent computation of the advantages needs."""

    kept: list[dict[str, Any]]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        more = {"pixel_values": output["pixel_values"]} if "pixel_values" in output else {}
        # A whole forward pass of the plain model; the mask covers truncated completions too.
        real = torch.cat([output["prompt_mask"], torch.ones_like(output["completion_ids"])], 1)
        with torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=real, **more).logits[
                :, -output["completion_ids"].shape[1] - 1 :
            ]
        probabilities = (logits[:, :-1].double() / self.temperature).log_softmax(-1)
        kept = {
            "prompts": [row[row != self._tokenizer.pad_token_id].tolist() for row in output["prompt_ids"]],
            "said": self._said,
            "log_probs": probabilities.gather(-1, output["completion_ids"][:, :, None])[..., 0],
            "entropy": -(probabilities.exp() * probabilities).sum(-1),
            "texts": self._tokenizer.batch_decode(self._said, skip_special_tokens=True),
            "advantages": output["advantages"],
        }
        self.kept.append(
            {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}
        )
        return output


def trainer(folder, kind="text", credit: Any = "leaf", options=None, rewards=None, **changes) -> Any:
    """Make a trainer; `changes` are of TRL's config, or arguments of its trainer."""
    model, processor = text_model() if kind == "text" else vision_model()
    own = {name: changes.pop(name) for name in ("peft_config", "rollout_func", "tools") if name in changes}
    made = Recording(
        model,
        rewards or [letters, briefness],
        GRPOConfig(
            **{
                "output_dir": str(folder),
                "max_steps": 2,
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 16,
                "num_generations": 8,
                "max_completion_length": 6,
                "temperature": 0.9,
                "beta": 0.0,
                "reward_weights": [1.0, 0.5] if rewards is None else None,
                "use_cpu": True,
                "bf16": False,
                "activation_checkpointing": False,
                "report_to": "none",
                "save_strategy": "no",
                "logging_steps": 1,
                "disable_tqdm": True,
                **changes,
            }
        ),
        text_rows() if kind == "text" else image_rows(),
        processing_class=processor,
        credit=credit,
        credit_options=options,
        **own,
    )
    made.kept = []
    return made


if __name__ == "__main__":
    folder, rule = Path(sys.argv[1]), sys.argv[2]
    # Three groups of eight: the second one lies half here and half there.
    one = trainer(folder / "run", credit=rule, per_device_train_batch_size=12)
    before = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    one.train()
    moved = max(float((value.detach() - before[name]).abs().max()) for name, value in one.model.named_parameters())
    torch.save({"kept": one.kept, "moved": moved}, folder / f"{one.accelerator.process_index}.pt")

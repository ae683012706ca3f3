"""Train a tiny GLM-ASR through verl's own entry point on a CPU: `python -m tests.engines.verl.train_tiny FOLDER`."""

# pyright: reportMissingImports=false

import json
import os
import sys
from pathlib import Path

import hydra
import ray
import soundfile
import torch
from transformers import GlmAsrForConditionalGeneration
from verl.trainer import main_ppo

from leaf.data import load
from leaf.data.export import export_for_verl
from tests.engines.verl.conftest import STEPS
from tests.helpers.models import glmasr
from tests.helpers.sound import tone


def overrides(folder: Path) -> list[str]:
    """List what differs from the launch script: the model, its size, the CPU, and the engine that samples."""
    return [
        "trainer.v1.trainer_mode=leaf_sync",
        "algorithm.adv_estimator=grpo",
        "+algorithm.leaf.rule=leaf",
        "algorithm.rollout_correction.rollout_is=token",
        "reward.custom_reward_function.path=pkg://leaf.engines.verl.reward",
        "reward.custom_reward_function.name=leaf_reward",
        "+reward.custom_reward_function.reward_kwargs.functions=[chrf]",
        "reward.num_workers=1",
        f"data.train_files=[{folder}/train.parquet]",
        f"data.val_files=[{folder}/train.parquet]",
        "data.custom_cls.path=pkg://leaf.engines.verl.dataset",
        "data.custom_cls.name=LeafDataset",
        "data.train_batch_size=2",
        "data.max_prompt_length=128",
        "data.max_response_length=8",
        "data.dataloader_num_workers=0",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora_alpha=8",
        "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.model.exclude_modules='.*(audio_tower|multi_modal_projector).*'",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "+actor_rollout_ref.actor.fsdp_config.wrap_policy.transformer_layer_cls_to_wrap="
        "[LlamaDecoderLayer,GlmAsrEncoderLayer]",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
        "actor_rollout_ref.actor.use_torch_compile=False",
        "actor_rollout_ref.actor.optim.lr=2e-2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.name=on_cpu",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "actor_rollout_ref.rollout.load_format=auto",
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=1",
        "trainer.device=cpu",
        f"trainer.total_training_steps={STEPS}",
        "trainer.val_before_train=False",
        "trainer.logger=[console,file]",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder}/checkpoints",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=2",
    ]


def prepare(folder: Path) -> None:
    """Write a model with its processor, and four recordings as Parquet."""
    config, processor = glmasr.config_and_processor()
    torch.manual_seed(0)
    model = GlmAsrForConditionalGeneration(config)
    # verl sends merged weights as bfloat16, so those of the checkpoint are such numbers.
    model.bfloat16().float().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = []
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", tone(0.6 + i / 10, hz=200 + 80 * i), 16000)
        rows.append({"prompt": "what do i press", "audio": f"{i}.wav", "reference": "press one", "split": "train"})
    (folder / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    export_for_verl(load(str(folder / "my.jsonl"), "train"), "my", "train", folder / "train.parquet")


def main(folder: Path) -> None:
    """Train, and leave verl's own log of every step in FOLDER/log.jsonl."""
    prepare(folder)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides(folder))
    passed = {name: os.environ[name] for name in ("PYTHONPATH", "VERL_USE_EXTERNAL_MODULES", "VERL_FILE_LOGGER_PATH")}
    # Ray is told of a GPU; the platform of on_cpu uses none.
    ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, runtime_env={"env_vars": passed})
    main_ppo.run_ppo(config, main_ppo.TaskRunnerV1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

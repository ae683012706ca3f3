#!/bin/bash
# GLM-ASR with leaf's credit in verl 0.9.1, on 2 nodes of 8 GPUs:
#   bash recipes/engines/verl-glm-asr.sh train.parquet validation.parquet [key=value ...]
#
# No GPU has run this. Its keys are those of verl's own configuration, which a test composes and checks, and a tiny GLM-ASR
# has trained through verl with the same trainer, rewards, data set and LoRA on a CPU, with transformers in place of vLLM.
#
# Before, on every node (recipes/engines/verl.txt has the versions):
#   pip install "verl[vllm]==0.9.1" -r recipes/engines/verl.txt && pip install --no-deps .   # in leaf's clone
#   ray start --head --port 6379              # on the first node
#   ray start --address FIRST_NODE:6379       # on the second one
# and once, where leaf has its own environment, on a disk that all nodes see:
#   leaf data export my.jsonl --for verl --to train.parquet
#   leaf data export my.jsonl --for verl --to validation.parquet --split validation
#
# To see what verl makes of it without starting anything: ... verl-glm-asr.sh train.parquet validation.parquet --cfg job
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "verl-glm-asr.sh: give the Parquet files of training and validation, then key=value for verl." >&2
    exit 2
fi
train=$1 validation=$2
shift 2

# Without this verl passes over a plugin that cannot be imported, and no word is said.
export VERL_USE_EXTERNAL_MODULES=leaf.engines.verl.plugin

arguments=(
    # leaf's credit; verl's own advantages are computed and replaced.
    trainer.v1.trainer_mode=leaf_sync
    algorithm.adv_estimator=grpo
    +algorithm.leaf.rule=leaf
    +algorithm.leaf.options.max_boundaries=2
    # LEAF reads the surprisal of what was sampled.
    actor_rollout_ref.rollout.calculate_log_probs=True
    actor_rollout_ref.rollout.logprobs_mode=processed_logprobs
    # verl sends merged weights as bfloat16: truncated importance weights take up the difference.
    algorithm.rollout_correction.rollout_is=token
    algorithm.rollout_correction.rollout_is_threshold=2.0

    # leaf's rewards; several with reward_kwargs.functions=[wer,bleu] and reward_kwargs.weights=[1.0,0.5].
    reward.custom_reward_function.path=pkg://leaf.engines.verl.reward
    reward.custom_reward_function.name=leaf_reward
    +reward.custom_reward_function.reward_kwargs.functions=[bleu]

    # verl's own data set hands encoded bytes to the processor, which takes waveforms.
    data.train_files="[$train]"
    data.val_files="[$validation]"
    data.custom_cls.path=pkg://leaf.engines.verl.dataset
    data.custom_cls.name=LeafDataset
    data.train_batch_size=128
    # Audio counts: GLM-ASR makes 12.5 tokens of a second. verl stops at a prompt that is longer.
    data.max_prompt_length=1024
    data.max_response_length=256
    data.dataloader_num_workers=4

    actor_rollout_ref.model.path=zai-org/GLM-ASR-Nano-2512
    # Only the language model learns. Never without lora.merge: an adapter that verl pushes under transformers' names meets
    # other names in vLLM's speech classes, and vLLM drops what it does not know without a word.
    actor_rollout_ref.model.lora_rank=64
    actor_rollout_ref.model.lora_alpha=128
    actor_rollout_ref.model.lora.merge=True
    "actor_rollout_ref.model.exclude_modules='.*(audio_tower|multi_modal_projector).*'"
    # Rows are padded, not packed into one: packing was not tried with audio.
    actor_rollout_ref.model.use_remove_padding=False
    +actor_rollout_ref.model.override_config.attn_implementation=sdpa

    actor_rollout_ref.actor.strategy=fsdp2
    # The class names attention inside of layers, too; verl would shard both, the outer one first, which FSDP2 cannot.
    "+actor_rollout_ref.actor.fsdp_config.wrap_policy.transformer_layer_cls_to_wrap=[LlamaDecoderLayer,GlmAsrEncoderLayer]"
    actor_rollout_ref.actor.optim.lr=5e-6
    actor_rollout_ref.actor.ppo_mini_batch_size=128
    # A family that pads waveforms (Granite Speech) needs 1 here and below: its rows change with their neighbours.
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4

    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n=8
    actor_rollout_ref.rollout.temperature=1.0
    actor_rollout_ref.rollout.top_p=1.0
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5

    trainer.nnodes=2
    trainer.n_gpus_per_node=8
    trainer.total_epochs=1
    trainer.test_freq=50
    trainer.save_freq=50
    trainer.project_name=leaf
    trainer.experiment_name=glm-asr
    'trainer.logger=[console,tensorboard]'
)
exec python -m verl.trainer.main_ppo "${arguments[@]}" "$@"

#!/bin/bash
# One run of the published protocol as a Slurm job, on one node:
#   sbatch --gpus-per-node=1 recipes/published/slurm.sh leaf granite-3.3-2b librisqa [recipe or key=value ...]
#   sbatch --gpus-per-node=6 --mem=256G recipes/published/slurm.sh leaf granite-3.3-2b librisqa
# Every process needs a prompt, and the published rollout has six. On 7 or 8 GPUs eight-gpus.yaml is laid over it, which
# is no longer the published protocol: 8 prompts a rollout, steps of 8 completions. More than 8 GPUs are refused.
# Ten minutes before its time is up Slurm sends SIGTERM; leaf saves and stops, and the job queues itself again.
#SBATCH --job-name=leaf
#SBATCH --nodes=1
#SBATCH --cpus-per-gpu=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
set -uo pipefail
method=$1 model=$2 task=$3
shift 3
cd "${SLURM_SUBMIT_DIR:-.}"
published=recipes/published
run=runs/$method-$model-$task
gpus=${SLURM_GPUS_ON_NODE:-1}

command=(leaf)
recipes=("$published/$method.yaml" "$published/models/$model.yaml" "$published/tasks/$task.yaml")
if [ "$gpus" -gt 1 ] && [ "$method" != sft ]; then # stage sft runs in one process
    if [ "$gpus" -gt 8 ]; then
        echo "slurm.sh: there are $gpus GPUs, and a rollout has at most 8 prompts for them; ask for at most 8 GPUs." >&2
        exit 2
    fi
    # It passes the signal on to its processes and waits for them to save.
    command=(torchrun --standalone --nproc_per_node "$gpus" --shutdown-timeout 540 -m leaf)
    if [ "$gpus" -gt 6 ]; then
        echo "slurm.sh: for $gpus GPUs eight-gpus.yaml puts 8 prompts a rollout and steps of 8 completions for 6 and 6."
        recipes+=("$published/eight-gpus.yaml")
    fi
fi

child=
stopped=
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child"' TERM
"${command[@]}" train "${recipes[@]}" "output_dir=$run" "$@" --resume &
child=$!
[ -z "$stopped" ] || kill -TERM "$child" # the signal came in between
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # the signal ended the wait
    wait "$child"
    code=$?
done
[ -n "$stopped" ] && [ -n "${SLURM_JOB_ID:-}" ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"

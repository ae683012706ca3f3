"""What test_processes.py runs in one process and in two: training runs on the tiny model, and what they leave.

python -m torch.distributed.run --nproc_per_node 2 -m tests.helpers.processes_worker FOLDER
"""

import json
import math
import os
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from leaf import LeafTrainer
from leaf.config import LeafConfig
from leaf.errors import LeafError
from leaf.model import from_recipe
from leaf.plugins import import_module
from leaf.runs.processes import leave
from tests.helpers.elsewhere import Elsewhere, Leaving
from tests.helpers.tiny import rows, tiny_model

BASE = LeafConfig(
    num_completions=4,
    max_new_tokens=6,
    lora_r=2,
    lora_dropout=0.0,
    device="cpu",
    max_steps=3,
    learning_rate=1e-4,
    eval_every=2,
    eval_items=3,
    save_every=3,
    record_every=1,
    token_budget=512,
    prompts_per_rollout=4,
)
SCENARIOS = {
    "on_policy": BASE,
    # Three prompts in two processes, updates that cut groups and prompts, one without any completion of a process.
    "off_policy": replace(
        BASE, prompts_per_rollout=3, completions_per_update=3, passes_per_rollout=2, reduction="token_mean", clip=0.05
    ),
    "constant": replace(BASE, reduction="constant", kl_coef=0.0, token_budget=40),
    # Drawn by a sampler elsewhere, which one process brings the weights to.
    "elsewhere": replace(BASE, top_p=1.0),
    # Credit that looks at all groups of a step, and at their most uncertain tokens.
    "whole_batch": replace(BASE, credit="reinforce_pp_baseline", uncertain_share=0.5),
    # Further prompts, and of all of them the half that varies most; a process may have none of these.
    "chosen_groups": replace(BASE, prompts_per_rollout=2, dynamic_sampling=1, keep_groups=0.5),
    # Another seed: with the first one a draw lies so near the edge of a token that last bits decide it (Intel CPUs).
    "one_sided": replace(BASE, seed=1),
    # One prompt a micro-batch; where there are two processes, one of them runs out of memory in its second.
    "short_of_memory": replace(BASE, token_budget=80),
    # The loss of step 2 is NaN where its second prompt is: in one process of two.
    "not_finite": BASE,
}


def letters(completions, **columns):
    return [sum(map(ord, text)) % 7 / 7 for text in completions]


def one_sided(completions, reference, **columns):
    """Score nothing but the answers to the first row; the others' groups have no credit at all."""
    wanted = rows(5)[0]["reference"]
    return [len(text) / 10 if mine == wanted else None for text, mine in zip(completions, reference, strict=True)]


def failing(completions, **columns):
    if torch.distributed.get_rank() == 1:
        raise ValueError("no")
    return [0.0] * len(completions)


def trainer(folder, name, reward, args, unlike=""):
    """Make a trainer; `unlike` names what this process has otherwise than the others."""
    model, processor = tiny_model()
    if unlike == "model":
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
    args = replace(args, output_dir=str(folder / name))
    said, train_rows = [], rows(5)
    if unlike == "rows":
        train_rows[4]["reference"] += "s"
    return LeafTrainer(
        model, [reward], args, train_rows, rows(4), processing_class=processor, say=said.append, on_step=said.append
    )


def run_out_once(one):
    """Let process 1 run out of memory once, with a part of its gradient there already; return its forwards."""
    forwards = []

    def hook(module, inputs):
        if one.processes.index == 1 and torch.is_grad_enabled() and module.training:
            parts = sum(parameter.grad is not None for parameter in one.parameters)
            forwards.append(parts)
            if len(forwards) == 2:
                raise torch.OutOfMemoryError("as if")

    one.policy.language_model.register_forward_pre_hook(hook)
    return forwards


def make_not_finite(one):
    """Make the loss of step 2 NaN in the process that has the second prompt."""
    update = one.update

    def poisoned(rollout):
        if rollout.step == 2 and 1 in rollout.positions:
            advantages = [
                advantage * math.nan if position == 1 else advantage
                for position, advantage in zip(rollout.positions, rollout.advantages, strict=True)
            ]
            rollout = replace(rollout, advantages=advantages)
        return update(rollout)

    one.update = poisoned


def stop_and_go_on(folder, rank):
    """Ask process 1 to stop in step 2, note what each says, and resume."""
    calls = []

    def asking(completions, **columns):
        calls.extend([1] * (len(completions) > 2))  # a validation has fewer, of three rows
        if rank == 1 and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return letters(completions)

    asking.__name__ = "letters"
    try:
        trainer(folder, "asked", asking, BASE).train()
    except LeafError as error:
        (folder / f"asked-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    trainer(folder, "asked", letters, BASE).train(resume_from_checkpoint=True)


def resume_unlike(folder, rank):
    """Resume in process 1 from a folder of its own: with an older checkpoint, a damaged newest one, or no run."""
    source = folder / "begun_alone"
    for what in ("older", "damaged", "absent"):
        mine = folder / f"{what}-{rank}"
        if rank == 0 or what != "absent":
            shutil.copytree(source, mine)
        newest = mine / "checkpoints/step-000003"
        if rank == 1 and what == "older":
            shutil.rmtree(newest)
        if rank == 1 and what == "damaged":
            (newest / "state.json").write_text("{}")
        try:
            trainer(folder, "begun_alone", letters, BASE).start(resume=mine)
        except LeafError as error:
            (folder / f"resumed-{what}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def reward_unlike(folder, rank):
    """Give process 1 a reward of the same name whose file has other code."""
    file = folder / f"rewards-{rank}" / "mine.py"
    file.parent.mkdir()
    file.write_text(f"def reward(completions, **columns):\n    return [{rank}.0] * len(completions)\n")
    try:
        trainer(folder, "reward", import_module(str(file)).reward, BASE)
    except LeafError as error:
        (folder / f"unlike-reward-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def fail_to_log(folder, rank):
    """Let the main process fail where it alone writes the record of a step, and note what each says."""

    def full(record):
        raise OSError("no room")

    one = trainer(folder, "unlogged", letters, BASE)
    one.on_step = full
    try:
        one.train()
    except (LeafError, OSError) as error:
        (folder / f"unlogged-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def lose_the_servers(folder, rank):
    """Let no server answer process 1 behind step 2, ahead of the first save, and note what each says."""
    one = trainer(folder, "lost", letters, replace(BASE, top_p=1.0, eval_every=0, prompts_per_rollout=2))
    one.sampler, one.on_policy = Leaving(1) if rank == 1 else Elsewhere(), False
    try:
        one.train()
    except LeafError as error:
        (folder / f"lost-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def meet_accidents(folder, rank):
    """Let process 1 meet a broken recording and a reward that raises, and note what each says."""
    model, processor = tiny_model()
    data = rows(5)
    (folder / "broken.wav").write_bytes(b"nothing")
    data[3]["audio"] = str(folder / "broken.wav")  # the last of step 1's four
    skip = {"tolerate": "skip", "max_steps": 1, "eval_every": 0}
    args = replace(BASE, output_dir=str(folder / "accidents"), **skip)
    said = []
    LeafTrainer(
        model,
        [failing],
        args,
        data,
        processing_class=processor,
        say=said.append,
        on_step=lambda record: said.append(f"record {record['bad_audio']} {record['reward_errors']}"),
    ).train()
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def run(folder, names=tuple(SCENARIOS)):
    for name in names:
        args = SCENARIOS[name]
        one = trainer(folder, name, one_sided if name == "one_sided" else letters, args)
        forwards = run_out_once(one) if name == "short_of_memory" else []
        if name == "not_finite":
            make_not_finite(one)
        if name == "elsewhere":
            one.sampler, one.on_policy = Elsewhere(), False
        one.train()
        if isinstance(one.sampler, Elsewhere):
            (folder / f"pushed-{one.processes.index}.json").write_text(json.dumps(one.sampler.pushed))
        if forwards:
            facts = {"forwards": forwards, "token_budget": one.policy.token_budget}
            (folder / "ran_out.json").write_text(json.dumps(facts))


def agree_on_a_budget(folder, rank):
    """Measure an update where the second process has a quarter of the first one's memory."""
    room = from_recipe.measure_update
    from_recipe.measure_update = lambda *of: replace(room(*of), tokens=1, taken=1, room=400 if rank == 0 else 100)
    one = trainer(folder, "measured", letters, replace(BASE, token_budget=None))
    from_recipe.measure_update = room
    assert one.measured is not None
    (folder / f"budget-{rank}.json").write_text(json.dumps([one.measured.budget(512), one.policy.token_budget]))


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    run(folder)
    # What one process has begun two may continue, and the other way round.
    short = replace(SCENARIOS["on_policy"], max_steps=3)
    trainer(folder, "begun_alone", letters, short).train(resume_from_checkpoint=True)
    rank = torch.distributed.get_rank()
    stop_and_go_on(folder, rank)
    fail_to_log(folder, rank)
    lose_the_servers(folder, rank)
    meet_accidents(folder, rank)
    agree_on_a_budget(folder, rank)
    try:
        trainer(folder, "failing", failing, BASE).train()
    except LeafError as error:
        (folder / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    differing = {
        "recipe": replace(BASE, seed=rank, max_steps=3 + rank),
        "rows": BASE,
        "model": BASE,
    }
    for what, config in differing.items():
        try:
            trainer(folder, f"unlike_{what}", letters, config, unlike=what if rank == 1 else "")
        except LeafError as error:
            (folder / f"unlike-{what}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    resume_unlike(folder, rank)
    reward_unlike(folder, rank)
    try:
        trainer(folder, "few", letters, replace(BASE, prompts_per_rollout=1))
    except LeafError as error:
        (folder / f"few-{rank}.txt").write_text(str(error))


def end(folder):
    """Leave the other processes and note which threads of the group are left."""
    rank = torch.distributed.get_rank()
    leave()
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    (folder / f"threads-{rank}.json").write_text(json.dumps([name for name in names if "gloo" in name]))


if __name__ == "__main__":
    main()
    end(Path(sys.argv[1]))

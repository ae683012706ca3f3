"""Train every weight of the language model with GRPO or SFT, and hold the result against LoRA with LEAF.

    python -m benchmarks.full_parameter run --method grpo --seed 0 [--steps N] [key=value ...]
    python -m benchmarks.full_parameter run --method sft --seed 0     # lora-sft: on the weights of LoRA
    python -m benchmarks.full_parameter search --method grpo          # learning rates, by validation
    python -m benchmarks.full_parameter cost --method lora-leaf       # parameters, memory and time of a few steps
    python -m benchmarks.full_parameter table

These are the runs of benchmarks/learning (recipes/qa.yaml) with more weights. The checkpoint, the prompts and their
order, the sampling seeds, the completions of a step, the schedule, the divergence and the scoring are the same, but the
whole language model of the embedded checkpoint is trained, embedding and head as the one matrix they are in SmolLM2.
Audio encoder and projector stay frozen, as there. Rollout and update are `RLTrainer`'s. SFT takes the references of
the prompts that GRPO samples for, in the same order and as many a step; `--passes` goes through them again.

Precision: forward and backward in bfloat16, as in the LoRA runs; AdamW works on float32 weights, which begin as the
checkpoint's own and are rounded to bfloat16 after every step. Updates of this size would be lost in bfloat16.

`run` appends a line per split to benchmarks/results/full_parameter.jsonl; `search` and `cost` write to
full_parameter_search.jsonl and full_parameter_cost.jsonl. `table` reads the LoRA runs from learning.jsonl, those
of `--set` where they were made on the machine of these.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.learning.chosen import METRICS, SPLITS, Chosen
from benchmarks.learning.intervals import cells
from benchmarks.learning.runs import SEARCH_SEED, scored
from benchmarks.recipe import qa_recipe
from benchmarks.records import RESULTS, machine, read
from leaf.config import LeafConfig
from leaf.data import load
from leaf.data.rows import batch_indices, take
from leaf.errors import ModelError
from leaf.files import append_row
from leaf.memory import peak_bytes, reset_peak
from leaf.model.demo import resolve_model
from leaf.model.policy import Policy, Prompt
from leaf.train.schedule import build_schedule, run_length
from leaf.train.sft import sft_gradient, share_audio
from leaf.train.trainer import RLTrainer

RUNS = RESULTS / "full_parameter.jsonl"
SEARCH = RESULTS / "full_parameter_search.jsonl"
COST = RESULTS / "full_parameter_cost.jsonl"
METHODS = {"grpo": "all weights, GRPO", "sft": "all weights, SFT", "lora-sft": "LoRA, SFT"}
RATES = (5e-6, 1e-5, 2e-5, 4e-5)
RATE = {"grpo": 1e-5, "sft": 2e-5}  # the best of `search --steps 50`


@dataclass(frozen=True)
class TextPrompt(Prompt):
    """Hold with an embedded prompt its token ids (P,), so that its text can be embedded again with a graph."""

    ids: Tensor


class FullPolicy(Policy):
    """Train all weights of the language model; the reference is a copy of those it began with.

    Args:
        model, processor, options: as for `Policy`; a head equal to the embedding is tied to it.
        keep_start: whether to keep that copy.
    """

    def __init__(self, model: nn.Module, processor, *, keep_start: bool = True, **options):
        super().__init__(model, processor, **options)
        embedding = self.base.get_input_embeddings()
        if torch.equal(self.head.weight, embedding.weight):
            self.head.weight = embedding.weight
        for part in (self.language_model, self.head, embedding):
            part.requires_grad_(True)
        self.start = [weight.detach().clone() for weight in self.trained()] if keep_start else None

    def trained(self) -> list[nn.Parameter]:
        """Return the weights of the language model, a tied one once."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Put the first weights in place of the current ones for the time of the block."""
        if self.start is None:
            raise ModelError("This policy kept no copy of its first weights. Load it with keep_start=True.")
        current = [weight.data for weight in self.trained()]
        self._place(self.start)
        try:
            yield
        finally:
            self._place(current)

    def _place(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.trained(), values, strict=True):
            weight.data = value

    def embed(self, rows) -> list[Prompt]:
        """Embed prompts as `Policy` does, and keep their token ids."""
        inputs = self.inputs(rows)
        real = inputs["attention_mask"].bool()
        return [
            TextPrompt(prompt.embeddings, prompt.is_audio, ids[keep])
            for prompt, ids, keep in zip(super().embed(rows), inputs["input_ids"], real, strict=True)
        ]

    def reembed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Send the text of the prompts through the embedding that is in place now."""
        again = []
        for prompt in prompts:
            assert isinstance(prompt, TextPrompt)
            embeddings = torch.where(prompt.is_audio[:, None], prompt.embeddings, self.embed_tokens(prompt.ids))
            again.append(replace(prompt, embeddings=embeddings))
        return again

    def read(self, hidden: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Read as `Policy` does, with a gradient for the head."""
        if not torch.is_grad_enabled():
            return super().read(hidden, row, token)
        log_probs = self.logits(hidden).log_softmax(-1)
        with torch.no_grad():
            entropies = -torch.linalg.vecdot(log_probs.exp(), log_probs)
        return log_probs[row, token], entropies[row]


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 `masters` of `weights`, which are rounded from them after every step."""

    def __init__(self, weights: Sequence[Tensor], masters: Sequence[Tensor], config: LeafConfig):
        self.weights = list(weights)
        super().__init__(masters, lr=config.learning_rate, weight_decay=config.weight_decay)

    def step(self, closure=None):
        """Take the gradients of the weights to the masters, step, and round the weights."""
        masters = self.param_groups[0]["params"]
        for weight, master in zip(self.weights, masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        loss = super().step(closure)
        with torch.no_grad():
            for weight, master in zip(self.weights, masters, strict=True):
                weight.copy_(master)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of weights and masters."""
        for weight in self.weights:
            weight.grad = None
        super().zero_grad(set_to_none)


def load_full(checkpoint: str, config: LeafConfig, *, keep_start: bool) -> tuple[FullPolicy, list[Tensor]]:
    """Return the policy in the recipe's precision, and its trained weights in float32 as the checkpoint has them."""
    exact = FullPolicy.load(checkpoint, dtype="float32", keep_start=False)
    options = {"temperature": config.temperature, "max_prompt_tokens": config.max_prompt_tokens}
    policy = FullPolicy.load(checkpoint, dtype=config.dtype, keep_start=keep_start, **options)
    return policy, [weight.detach() for weight in exact.trained()]


def full_trainer(
    policy: FullPolicy, masters: list[Tensor], config: LeafConfig, train_rows, eval_rows=None, **options
) -> RLTrainer:
    """Make a trainer (`options` are those of `RLTrainer.from_model`) whose optimiser is AdamW on the masters."""
    trainer = RLTrainer.from_model(policy, config, train_rows, eval_rows, **options)
    trainer.optimizer = MasterAdamW(trainer.parameters, masters, config)
    trainer.schedule = build_schedule(trainer.optimizer, config, trainer.length.cycle * trainer.updates_per_rollout)
    return trainer


def rl_step(trainer: RLTrainer, step: int, period: int) -> dict[str, float | None]:
    """Take one step of the trainer, rollout and update."""
    rollout = trainer.rollout(step)
    stats = trainer.update(rollout)
    return {"reward": float(torch.stack(rollout.rewards).nanmean()), "kl": stats["kl"], "norm": stats["grad_norm"]}


def sft_step(trainer: RLTrainer, step: int, period: int) -> dict[str, float]:
    """Take one step on the references of the prompts that `rl_step` samples for; they begin anew after `period`."""
    args = trainer.config
    at = (step - 1) % period
    rows = take(trainer.train_rows, batch_indices(len(trainer.train_rows), args.prompts_per_rollout, at, args.seed))
    trainer.policy.train()
    trainer.optimizer.zero_grad()
    nll = sft_gradient(trainer.policy, share_audio(trainer.policy, rows))
    norm = nn.utils.clip_grad_norm_(trainer.parameters, args.max_grad_norm, error_if_nonfinite=True)
    trainer.optimizer.step()
    trainer.schedule.step()
    return {"nll": nll, "norm": float(norm)}


def prepare(args, seed: int, given: Sequence[str]) -> tuple[dict, RLTrainer, int]:
    """Return the record of a run so far, its trainer, and the steps of one pass through its prompts."""
    torch.set_num_threads(args.threads)
    lora, rule = args.method.startswith("lora-"), args.method.removeprefix("lora-")
    settings = [f"seed={seed}"]
    settings += [] if rule == "sft" else [f"credit={rule}"]
    settings += [] if lora else [f"learning_rate={RATE[rule]}"]
    config = qa_recipe([*settings, *given, *args.overrides])
    period = run_length(config, 0).steps
    if args.passes > 1:
        config = replace(config, max_steps=period * args.passes)
    record = {"task": "qa", "method": args.method, "seed": seed, "steps": period * args.passes, "passes": args.passes}
    record |= {"learning_rate": config.learning_rate, "overrides": args.overrides}
    record["machine"] = machine(args.threads)
    if lora:
        trainer = RLTrainer.from_recipe(config)
    else:
        kept = rule != "sft" and config.kl_coef > 0
        full = load_full(resolve_model(config.model), config, keep_start=kept)
        rows = [load(config.task, split) for split in (config.train_split, config.eval_split)]
        trainer = full_trainer(*full, config, *rows)
    record["parameters"] = sum(weight.numel() for weight in trainer.parameters)
    gc.collect()  # the checkpoint's second copy in float32
    return record, trainer, period


def train(args, seed: int, given: Sequence[str]) -> tuple[dict, RLTrainer]:
    """Train to the last step, and return the record and the trainer."""
    record, trainer, period = prepare(args, seed, given)
    config = trainer.config
    advance = sft_step if args.method.removeprefix("lora-") == "sft" else rl_step
    validation, steps, wall, busy = [], [], [], []
    if config.eval_every:
        validation.append({"step": 0, **trainer.evaluate().values()})
    reset_peak(trainer.policy.device)
    peak = 0
    for step in range(1, trainer.length.steps + 1):
        began, worked = time.perf_counter(), time.process_time()
        steps.append(advance(trainer, step, period))
        wall.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
        peak = max(peak, peak_bytes(trainer.policy.device))
        values = "  ".join(f"{name} {value:.4f}" for name, value in steps[-1].items() if value is not None)
        print(f"{args.method} {seed} {step}/{trainer.length.steps}  {values}  {wall[-1]:.1f} s", flush=True)
        if config.eval_every and (step % config.eval_every == 0 or step == trainer.length.steps):
            validation.append({"step": step, **trainer.evaluate().values()})
            print(validation[-1], flush=True)
            reset_peak(trainer.policy.device)
    for name in steps[0]:
        record[name] = [round(step[name], 4) for step in steps]
    record |= {"validation": validation, "peak_gb": peak / 1e9}
    record |= {"seconds_per_step": statistics.median(wall), "cpu_seconds_per_step": statistics.median(busy)}
    return record, trainer


def run(args):
    given = [] if args.steps is None else [f"max_steps={args.steps}"]
    record, trainer = train(args, args.seed, given)
    for split in args.splits.split(","):
        rows = load(trainer.config.task, split, limit=args.items).to_list()
        scores, _ = scored(trainer.policy, trainer.config, rows, sampled=split in args.sampled.split(","))
        print(args.method, args.seed, split, scores, flush=True)
        append_row(RUNS, record | {split: scores})  # at once: a run cut short keeps what it has


def search(args):
    """Try every learning rate on one seed and score the whole validation split greedily."""
    for rate in args.rates:
        given = [f"learning_rate={rate}", f"max_steps={args.steps}", "eval_every=0"]
        record, trainer = train(args, SEARCH_SEED, given)
        rows = load(trainer.config.task, trainer.config.eval_split, limit=args.items).to_list()
        record["validation"], _ = scored(trainer.policy, trainer.config, rows, sampled=False)
        print(args.method, rate, record["validation"], flush=True)
        append_row(SEARCH, record)
        del trainer
        gc.collect()


def cost(args):
    """Take a few steps of a method, LoRA's included, and record parameters, memory and time."""
    record, _ = train(args, SEARCH_SEED, [f"max_steps={args.steps}", "eval_every=0"])
    print({name: record[name] for name in ("parameters", "peak_gb", "seconds_per_step", "cpu_seconds_per_step")})
    append_row(COST, record)


def table(args):
    lora, full = Chosen("qa", set=args.set).runs(), read(RUNS)
    named = {"start": [r for r in lora if r["credit"] == "none"]}
    named["LoRA, LEAF"] = [r for r in lora if r["credit"] == "leaf"]
    named["LoRA, GRPO"] = [r for r in lora if r["credit"] == "grpo"]
    named |= {name: [r for r in full if r["method"] == method] for method, name in METHODS.items()}
    for split in SPLITS:
        for mode in ("greedy", "sampled"):
            title = f"{split}, {mode}: mean over seeds ± 95 %, and difference to LoRA with LEAF paired by seed"
            header = [*METRICS, *(f"Δ {name}" for name in METRICS)]
            shown = Table("", "seeds", *header, title=title)
            scores = {
                name: {r["seed"]: r[split][mode] for r in rows if mode in r.get(split, {})}
                for name, rows in named.items()
            }
            for name, mine in scores.items():
                base = {} if name in ("start", "LoRA, LEAF") else scores["LoRA, LEAF"]
                if mine:
                    shown.add_row(name, str(len(mine)), *cells(mine, base)[: len(header)])
            if shown.row_count:
                Console(width=150).print(shown)
    shown = Table("", "trained parameters", "peak memory", "wall per step", "CPU per step", title="Cost of a step")
    for record in read(COST):
        times = f"{record['seconds_per_step']:.1f} s", f"{record['cpu_seconds_per_step']:.1f} s"
        shown.add_row(record["method"], f"{record['parameters']:,}", f"{record['peak_gb']:.2f} GB", *times)
    if shown.row_count:
        Console(width=150).print(shown)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, command in (("run", run), ("search", search), ("cost", cost), ("table", table)):
        one = commands.add_parser(name)
        one.set_defaults(command=command)
        if name == "table":
            one.add_argument("--set", default=None, help="the LoRA runs of learning.jsonl that were made together")
            continue
        methods = (*METHODS, "lora-leaf", "lora-grpo") if name == "cost" else tuple(METHODS)
        one.add_argument("--method", choices=methods, required=True)
        one.add_argument("--steps", type=int, default={"run": None, "search": 25, "cost": 5}[name])
        one.add_argument("--passes", type=int, default=1, help="SFT: times through the prompts of --steps steps")
        one.add_argument("--threads", type=int, default=1)
        one.add_argument("overrides", nargs="*", default=[])
        if name != "cost":
            one.add_argument("--items", type=int, default=None)
        if name == "run":
            one.add_argument("--seed", type=int, default=0)
            one.add_argument("--splits", default=",".join(SPLITS))
            one.add_argument("--sampled", default=",".join(SPLITS), help="splits that are scored sampled too")
        if name == "search":
            one.add_argument("--rates", type=float, nargs="+", default=RATES)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()

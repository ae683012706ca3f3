"""A complete RL loop from leaf's pieces, without its trainer: sample, reward, credit, update.

    python examples/minimal_loop.py --steps 10

`leaf train` also validates, saves and resumes, checks the model first, uses several GPUs and may take several updates a
rollout. Its own steps are in leaf/train/rollout.py and leaf/train/update.py.
"""

import argparse
import random
import time

import peft
import torch

from leaf.credit import credit_rule, policy_loss, token_weights
from leaf.data import load
from leaf.model.demo import resolve_model
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.model.scoring import batches, score
from leaf.rewards.total import Rewards
from leaf.train.rollout import assign_credit
from leaf.train.scoring import reference_log_probs


def arguments() -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="checkpoint directory, hub id, or demo")
    parser.add_argument("--task", default="asterisk_qa", help="task name or manifest")
    parser.add_argument("--credit", default="leaf", help="credit rule")
    parser.add_argument("--reward", default="bleu", help="reward function by name or import path")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step")
    parser.add_argument("--completions", type=int, default=8, help="completions per prompt (K)")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--kl", type=float, default=0.02, help="weight of the divergence from the reference")
    parser.add_argument("--dtype", default="auto", help="precision of the frozen weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/minimal_loop", help="where the adapter is written")
    return parser.parse_args()


def step(policy, optimizer, rule, rewards, rows, options, generator):
    """Take one step on a batch of rows and return the mean reward and the loss."""
    # Prompts: embedded once, audio included. The embeddings serve sampling, reference and update.
    prompts = policy.embed(rows)

    # Groups: K completions of each prompt. Those that begin alike share their computation.
    groups = sample(
        policy,
        prompts,
        num_completions=options.completions,
        max_new_tokens=options.max_new_tokens,
        temperature=policy.temperature,
        generator=generator,
    )
    trees = [group.tree for group in groups]

    # Rewards: one call on all completions gives (K,) per group, NaN where a completion could not be scored.
    earned, _ = rewards.of(rows, groups, policy.tokenizer)

    # Credit: from the tree and the rewards of a group to an advantage per token, (K, T).
    advantages = assign_credit(rule, groups, earned, policy.device)

    # The reference is the same model with its adapter off.
    reference = reference_log_probs(policy, groups)

    # Update. Weights are taken over the whole batch, so the losses of micro-batches add up to the loss of the batch.
    policy.train()
    masks = [(tree.node >= 0).to(policy.device) for tree in trees]
    weights = token_weights(masks)
    total = 0.0
    for batch in batches(policy, prompts, trees):
        new = score(policy, [prompts[i] for i in batch], [trees[i] for i in batch]).log_probs
        losses = []
        for i, log_probs in zip(batch, new, strict=True):
            loss, _ = policy_loss(
                log_probs,
                log_probs.detach(),  # one update a rollout and no dropout: the policy that sampled is this one
                advantages[i],
                masks[i],
                weights=weights[i],
                ref_logp=reference[i],
                kl_coef=options.kl,
            )
            losses.append(loss)
        loss = torch.stack(losses).sum()
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_([p for p in policy.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(torch.cat(earned).nanmean()), total


def main() -> None:
    """Load a model and data, train, and save the adapter."""
    options = arguments()
    torch.manual_seed(options.seed)  # of the adapter's initial weights
    policy = Policy.load(
        resolve_model(options.model),
        lora=peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0),
        dtype=options.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    optimizer = torch.optim.AdamW((p for p in policy.parameters() if p.requires_grad), lr=options.learning_rate)
    rule, rewards = credit_rule(options.credit), Rewards([options.reward])
    data = load(options.task, "train")
    order = random.Random(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    for number in range(1, options.steps + 1):
        began = time.perf_counter()
        rows = [data[i] for i in order.sample(range(len(data)), min(options.prompts, len(data)))]
        reward, loss = step(policy, optimizer, rule, rewards, rows, options, generator)
        print(f"step {number}  reward {reward:.3f}  loss {loss:+.4f}  {time.perf_counter() - began:.1f} s")
    policy.save_adapter(options.out)
    print(f"the adapter is in {options.out}")


if __name__ == "__main__":
    main()

"""Sample a group of completions per prompt: prefill each prompt once, decode every distinct prefix once.

Completions that agree so far share their computation until they part. This changes no probability: each draws its own
token from the distribution they share. Finished completions leave the batch. The surprisal of each token is recorded as
the token is drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from leaf.credit.sets import SetDraw
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError
from leaf.memory import in_parts, is_out_of_memory
from leaf.model.attention import refuse_long
from leaf.model.below import Entry, Room, Trail, layers_below
from leaf.model.choosing import choose
from leaf.model.decoding import decoder
from leaf.model.kept import KeptPrompt, may_keep
from leaf.model.lora_forward import held
from leaf.model.packing import micro_batches
from leaf.model.policy import Policy, Prompt

_TOO_MUCH = (
    "Memory ran out while the completions of a single prompt were sampled. Use fewer num_completions, a smaller "
    "max_new_tokens, shorter audio, dtype: bfloat16 or a larger device."
)


@dataclass(frozen=True)
class Group:
    """The K completions of one prompt.

    Attributes:
        prompt: the embedded prompt they continue.
        tokens: (K, T) int64, right-padded with 0; the end-of-sequence token counts as the last one.
        lengths: (K,) int64.
        surprisal: (K, T) −log p in nats under the distribution drawn from (after temperature and top-p); padding 0.
        truncated: (K,) True where the length limit came before an end-of-sequence token.
        draw: what the estimators ask of distinct completions; None for independent ones.
        entropy: (K, T) of the policy at the sampling temperature, without top-p, in nats; padding 0. None unless asked
            for.
        version: how many steps had made the weights that it was drawn from; None where the policy drew it itself.
        kept: the prompt as it was run, with its graph (leaf.model.kept); None where none was kept.
        beams: tokens that were decoded for it, those of beams that fell out among them; None where every token of its
            tree was decoded, and nothing else.
        entry: what entered the first adapted layer (leaf.model.below), once a forward has left it.
    """

    prompt: Prompt
    tokens: Tensor
    lengths: Tensor
    surprisal: Tensor
    truncated: Tensor
    draw: SetDraw | None = None
    entropy: Tensor | None = None
    version: int | None = None
    beams: int | None = None
    kept: KeptPrompt | None = None
    entry: Entry = field(default_factory=Entry)

    @cached_property
    def tree(self) -> PrefixTree:
        """The prefix tree, built once; it serves credit, the packed forward and the report."""
        return PrefixTree.build(self.tokens, self.lengths)

    @property
    def tokens_decoded(self) -> int:
        """How many tokens were decoded for the group; one that several completions begin with was decoded once."""
        return self.tree.num_nodes if self.beams is None else self.beams

    def select(self, indices: list[int]) -> "Group":
        """Make a group of some of the completions, width unchanged."""
        tokens, lengths = self.tokens[indices], self.lengths[indices]
        entropy = None if self.entropy is None else self.entropy[indices]
        rest = (self.surprisal[indices], self.truncated[indices])
        run = {"kept": self.kept, "entry": self.entry.select(indices)}
        return Group(self.prompt, tokens, lengths, *rest, entropy=entropy, version=self.version, **run)

    def texts(self, tokenizer) -> list[str]:
        """Decode the completions without special tokens."""
        rows = [row[:length].tolist() for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


# Where draws come from: one source for all, one for each prompt, or one for each completion of a prompt.
Generators = torch.Generator | Sequence[torch.Generator | Sequence[torch.Generator]] | None


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    greedy: bool | Sequence[bool] = False,
    entropy: bool = False,
    generator: Generators = None,
    token_budget: int | None = None,
    keep_prompts: bool = False,
    keep_entries: bool = False,
) -> list[Group]:
    """Sample `num_completions` (K) completions per prompt, dropout off.

    Where memory runs out, fewer prompts at a time are sampled, from then on too (`policy.sampled_at_once`). What they
    draw stays the same.

    Args:
        policy: the model, with its adapter on (inside `policy.reference()`: off).
        prompts: embedded prompts of any lengths.
        num_completions: K ≥ 1.
        max_new_tokens: length limit T ≥ 1; completions that reach it without an end token are marked truncated.
        temperature: divides the logits, in (0, inf); independent of `policy.temperature`.
        top_p: in (0, 1]; the smallest set of most likely tokens whose probability reaches it is kept.
        top_k: the most tokens that are kept; None for all. As in transformers, top_p looks at what top_k has kept.
        greedy: take the most likely token instead; the surprisal is then that of the whole distribution. One value for
            all completions, or one for each of the K.
        entropy: whether to record the policy's entropy at every token.
        generator: source of randomness on the CPU. With one for each prompt, what a prompt draws depends on its own
            alone. In place of a prompt's there may be one for each of its completions.
        token_budget: largest padded size (prompts × longest prompt) sampled at once, prompts of like length together;
            None for four times the policy's scoring budget, since no gradient is kept.
        keep_prompts: whether the update follows with the same weights: groups then carry their prompts as they were
            run, where `leaf.model.kept.may_keep` allows it and memory has sufficed so far.
        keep_entries: whether they are scored next: groups then carry what entered the adapter (leaf.model.below).

    Returns:
        One Group per prompt, tensors on the CPU.

    Raises:
        RunError: memory does not suffice for the completions of one prompt.
    """
    refuse_long(policy.text_config, [(prompt.length, max_new_tokens) for prompt in prompts])
    draws = _draws(generator, max_new_tokens, len(prompts), num_completions)
    each = [greedy] * num_completions if isinstance(greedy, bool) else list(greedy)
    if len(each) != num_completions:
        raise ConfigError(f"greedy has {len(each)} values for {num_completions} completions; give one for each.")
    kept = keeper(policy, prompts, keep_prompts=keep_prompts, keep_entries=keep_entries)

    def draw(part: Sequence[int]) -> list[Group]:
        its = (draws[:, part], temperature, (top_p, top_k), each, entropy)
        return kept(lambda keep, first: _sample(policy, [prompts[i] for i in part], *its, first, keep))

    return in_batches(policy, prompts, draw, behind_prompt=num_completions * max_new_tokens, token_budget=token_budget)


def keeper(
    policy: Policy, prompts: Sequence[Prompt], *, keep_prompts: bool, keep_entries: bool
) -> Callable[[Callable[[bool, int], list[Group]]], list[Group]]:
    """Settle what the groups of these prompts may keep for scoring and update; the arguments are those of `sample`.

    Returns:
        A function that lets another one sample a part of the prompts. The other one is told whether to keep the graph
        of its prompts, and of which layer to keep the inputs (0 for none). Where memory does not suffice for the graph,
        it is called again without.
    """
    wanted = keep_prompts and may_keep(policy, prompts)
    room = Room(policy, layers_below(policy, prompts) if keep_entries else 0)

    def kept(action: Callable[[bool, int], list[Group]]) -> list[Group]:
        groups = _without_graph_if_too_much(policy, wanted, lambda keep: action(keep, room.first))
        return [group if room.holds(group.entry) else replace(group, entry=Entry()) for group in groups]

    return kept


def _without_graph_if_too_much(policy: Policy, wanted: bool, action: Callable[[bool], list[Group]]) -> list[Group]:
    """Sample with the graph of the prompts, if wanted and as long as memory suffices for it."""
    if wanted and policy.keeps_prompts:
        try:
            return action(True)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        policy.keeps_prompts = False
    return action(False)


def in_batches(
    policy: Policy,
    prompts: Sequence[Prompt],
    action: Callable[[Sequence[int]], list[Group]],
    *,
    behind_prompt: int,
    token_budget: int | None,
) -> list[Group]:
    """Sample prompts of like length together, dropout off, fewer at a time where memory runs out.

    Args:
        policy, prompts, token_budget: as in `sample`.
        action: samples the prompts of these indices.
        behind_prompt: the most tokens that a prompt's completions may take.
    """
    groups: dict[int, Group] = {}
    # Both are set around all steps, so that the adapters' weights are cast once and kept.
    with _evaluating(policy), policy.precision(), held(policy, policy.base.dtype):
        for batch in micro_batches([prompt.length for prompt in prompts], token_budget or 4 * policy.token_budget):
            batch.sort()
            chosen = in_parts(
                policy,
                "sampled_at_once",
                batch,
                action,
                weight=max(prompts[i].length for i in batch) + behind_prompt,
                alone=_TOO_MUCH,
            )
            groups.update(zip(batch, chosen, strict=True))
    return [groups[i] for i in range(len(prompts))]


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Switch dropout off inside the block."""
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)


def _draws(generator: Generators, steps: int, prompts: int, completions: int) -> Tensor:
    """Draw a uniform number for every token to come, (T, P, K).

    They are drawn ahead, so a token depends neither on how prompts are batched nor on which completions have ended.
    """
    if isinstance(generator, Sequence):
        if len(generator) != prompts:
            raise ConfigError(f"{len(generator)} generators came for {prompts} prompts; give one for each.")
        return torch.stack([_draws_of(one, steps, completions) for one in generator], 1)
    each = [torch.rand(prompts * completions, generator=generator, dtype=torch.float64) for _ in range(steps)]
    return torch.stack(each).view(steps, prompts, completions)


def _draws_of(generator: torch.Generator | Sequence[torch.Generator], steps: int, completions: int) -> Tensor:
    """Draw the uniform numbers of one prompt, (T, K)."""
    if isinstance(generator, torch.Generator):
        return torch.rand(steps, completions, generator=generator, dtype=torch.float64)
    if len(generator) != completions:
        raise ConfigError(f"{len(generator)} generators came for {completions} completions; give one for each.")
    return torch.cat([torch.rand(steps, 1, generator=one, dtype=torch.float64) for one in generator], 1)


def _sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    draws: Tensor,
    temperature: float,
    kept: tuple[float, int | None],
    greedy: Sequence[bool],
    with_entropy: bool,
    first: int,
    keep: bool,
) -> list[Group]:
    """Sample one batch.

    Args:
        draws: (T, P, K) uniform numbers.
        greedy: which of the K completions take the most likely token instead.
        policy, prompts, temperature: as in `sample`.
        kept, with_entropy: its top_p and top_k, its `entropy`.
        first, keep: the layer whose inputs are kept, 0 for none; whether prompts keep the graph that ran them.
    """
    device = prompts[0].embeddings.device
    limit, _, completions = draws.shape
    draws = draws.flatten(1).to(device)
    count = draws.shape[1]
    is_greedy = torch.tensor(greedy, device=device).repeat(len(prompts))
    eos = torch.tensor(policy.eos_token_ids, device=device)
    scale = policy.temperature / temperature  # the decoder's logits are divided by the policy's own temperature

    tokens = torch.zeros(count, limit, dtype=torch.long, device=device)
    surprisal = torch.zeros(count, limit, device=device)
    entropy = torch.zeros(count, limit, device=device) if with_entropy else None
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    truncated = torch.ones(count, dtype=torch.bool, device=device)
    active = torch.arange(count, device=device)  # (A,) completions that still grow, in order of prompt
    row = active // completions  # (A,) the decoder's row of each, ascending from prompt to prompt
    decode, trail = decoder(policy, prompts, keep=keep, first=first), Trail(count, limit, device)
    logits = decode.start().mul_(scale)
    for step in range(limit):
        chosen, nats = choose(logits, row, kept, all(greedy), draws[step, active])
        if any(greedy) and not all(greedy):
            best, its_nats = choose(logits, row, kept, True, draws[step, active])
            chosen = torch.where(is_greedy[active], best, chosen)
            nats = torch.where(is_greedy[active], its_nats, nats)
        tokens[active, step], surprisal[active, step], lengths[active] = chosen, nats, step + 1
        if entropy is not None:
            entropy[active, step] = torch.special.entr(logits.softmax(-1)).sum(-1)[row]
        ended = torch.isin(chosen, eos)
        truncated[active[ended]] = False
        if step + 1 == limit or bool(ended.all()):
            break
        active = active[~ended]
        # Completions with the same prefix and the same token continue as one row. row · V + token numbers such pairs,
        # and unique sorts them, so that rows stay in order of their parents, as the decoder expects.
        vocabulary = logits.shape[-1]
        branch, row = torch.unique(row[~ended] * vocabulary + chosen[~ended], return_inverse=True)
        trail.add(active, step, row, len(branch))
        logits = decode.advance(branch // vocabulary, branch % vocabulary).mul_(scale)

    found = (tokens.cpu(), lengths.cpu(), surprisal.cpu(), truncated.cpu(), None if entropy is None else entropy.cpu())
    return _groups(prompts, completions, *found, decode.kept, trail.entries(decode.entered, len(prompts)))


def _groups(
    prompts: Sequence[Prompt],
    completions: int,
    tokens: Tensor,
    lengths: Tensor,
    surprisal: Tensor,
    truncated: Tensor,
    entropy: Tensor | None,
    kept: Sequence[KeptPrompt],
    entries: Sequence[Entry],
) -> list[Group]:
    """Cut what all completions of a batch are, in order of prompt, into a group for each prompt."""
    groups = []
    for i, prompt in enumerate(prompts):
        mine = slice(i * completions, (i + 1) * completions)
        width = int(lengths[mine].max())
        per_token = (tokens[mine, :width], lengths[mine], surprisal[mine, :width], truncated[mine])
        made = Group(prompt, *per_token, entropy=None if entropy is None else entropy[mine, :width])
        made = replace(made, kept=kept[i]) if kept else made
        groups.append(replace(made, entry=entries[i]) if entries else made)
    return groups

"""Choose the next token of every completion from the logits of its prefix, by one uniform number for each.

Completions share the rows of prefixes, F of them, and nothing is copied for each completion but a few numbers. A
vocabulary has V tokens; A completions choose.
"""

import torch
from torch import Tensor

# A nucleus almost never has more tokens than this, and finding the largest 256 is much cheaper than sorting the
# vocabulary. Rows where one has more look among 16 times as many, and so on.
_NUCLEUS = 256
_BLOCK = 128  # tokens whose probabilities are added up before a draw looks among them
_BELOW_1 = 1 - 2**-50  # what a uniform number may be at most, so that its product with a sum stays below the sum


def choose(
    logits: Tensor, row: Tensor, kept: tuple[float, int | None], greedy: bool, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one token per completion: the first whose cumulative probability exceeds the uniform number.

    Args:
        logits: (F, V) float32, one row per distinct prefix.
        row: (A,) the prefix of each completion.
        kept: top_p and top_k, as `leaf.model.sampling.sample` takes them.
        greedy: whether to take the most likely tokens instead.
        draws: (A,) uniform numbers in [0, 1).

    Returns:
        Tokens (A,) and their surprisal (A,) in nats under the distribution drawn from.
    """
    if greedy:
        best = logits.max(-1)
        return best.indices[row], (logits.logsumexp(-1) - best.values)[row]
    top_p, top_k = kept
    if top_p >= 1.0 and top_k is None:
        return _of_all(logits, row, draws)
    return _of_likeliest(logits, row, kept, draws, _NUCLEUS)


def _of_all(logits: Tensor, row: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from the whole vocabulary: first a block of tokens, then one of the block.

    So the long sums run over V / 128 numbers a row. They are in float64, because float32 sums near 1 would lose tokens
    rarer than 6e-8; and a block is drawn from by its own sum, so that none of its tokens is lost either.
    """
    rows, size = logits.shape
    blocks = -(-size // _BLOCK)
    top = logits.amax(-1, keepdim=True)
    weight = logits.new_empty(rows, blocks * _BLOCK)
    torch.sub(logits, top, out=weight[:, :size])
    weight[:, size:] = -torch.inf
    weight = weight.exp_().view(rows, blocks, _BLOCK)
    mass = weight.sum(-1).double()
    cumulative = mass.cumsum(-1)
    total = cumulative[:, -1]
    value = draws.clamp_max(_BELOW_1) * total[row]
    block = _search(cumulative, row, value).clamp_max(blocks - 1)  # a row of NaN leads beyond the end
    its_mass = mass[row, block]
    share = ((value - cumulative[row, block] + its_mass) / its_mass).clamp(0.0, _BELOW_1)
    inner = weight[row, block].double().cumsum(-1)  # (A, 128)
    index = block * _BLOCK + torch.searchsorted(inner, share[:, None] * inner[:, -1:], right=True).squeeze(1)
    index = index.clamp_max(size - 1)
    return index, (top.squeeze(1) + total.log().to(top.dtype))[row] - logits[row, index]


def _of_likeliest(
    logits: Tensor, row: Tensor, kept: tuple[float, int | None], draws: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Draw from the likeliest tokens, of which no row is taken to need more than `width` to reach top_p."""
    top_p, top_k = kept
    top = logits.topk(min(top_k or width, logits.shape[-1]), dim=-1)
    normaliser = (logits if top_k is None else top.values).logsumexp(-1, keepdim=True)
    probability = (top.values - normaliser).double().exp()
    short = probability.sum(-1) < top_p
    # A token is in the nucleus if those likelier than it do not reach top_p; so the first always is.
    before = probability.cumsum(-1) - probability
    probability = probability.masked_fill(before >= top_p, 0.0)
    cumulative = probability.cumsum(-1)
    mass = cumulative[:, -1]
    index = _search(cumulative, row, draws * mass[row])
    index = torch.minimum(index, (probability > 0).sum(-1)[row] - 1)  # a draw next to 1 stays in the nucleus
    token, nats = top.indices[row, index], (mass.log()[row] - probability[row, index].log()).float()
    if top_k is None and top.values.shape[-1] < logits.shape[-1] and bool(short.any()):
        again = short[row]
        number = short.cumsum(0) - 1  # of a row among those that need more
        token[again], nats[again] = _of_likeliest(logits[short], number[row[again]], kept, draws[again], 16 * width)
    return token, nats


def _search(cumulative: Tensor, row: Tensor, values: Tensor) -> Tensor:
    """Find for each value (A,) its place in its row of `cumulative` (F, V).

    searchsorted takes as many values for every row, so values are laid out as a table (F, most values of a row). The
    plain way, `cumulative[row]`, would copy a row of V numbers for every completion.
    """
    # Numbering the values of a row: their rank in order of row, less the number of values in the rows before.
    counts = torch.bincount(row, minlength=cumulative.shape[0])
    order = torch.argsort(row, stable=True)
    column = torch.empty_like(row)
    column[order] = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    # What stays empty looks up 0, and nobody reads it.
    wanted = values.new_zeros(cumulative.shape[0], int(counts.max()))
    wanted[row, column] = values
    return torch.searchsorted(cumulative, wanted, right=True)[row, column]

"""Estimate how much memory training takes of a model whose weights are not loaded: what `leaf doctor` tells.

A run measures instead (leaf.model.budget): on the embedded model it finds nine tenths of what is estimated here.
Everything is in bytes. The estimate counts tensors: what autograd keeps of decoder layers with frozen weights, float32
LoRA on linear layers, RMSNorm, a gated MLP and the sdpa kernel with a dense mask, and what a layer needs besides while
it works.

With D hidden size, I intermediate size, H heads of width h, G key-value heads, A = H·h, L layers, b bytes per frozen
value and r the rank, autograd keeps of one layer per token:

    two norms           2 · (D b + 4)   their input and 1/rms
    attention           4 A b + 4 H     queries, keys and values repeated to H heads, output; log-sum-exp
    gated MLP           2 I b           gate before its activation, up
    each LoRA           b w + b r       inputs of A, w = D, A or I, and of B
    with dropout        + b w           its noise; + w on CUDA, where it is a boolean
                        + I b           of an adapted MLP: gate after its activation

Without dropout the input of A is no copy: layers that read one tensor share it, that of `o_proj` is the attention's
output, and that of `down_proj` is computed again. Frozen linear layers, rotation and residual additions keep nothing,
and neither do layers below the first adapted one.
With gradient checkpointing a layer keeps only its input, D b, and is computed again in the backward pass, one layer at
a time. On CUDA there are, per query-key pair, an additive mask of b bytes for every window that layers have, shared by
them, and two boolean ones. (sdpa copies the mask in every layer unless S is a multiple of 8.) On the CPU attention runs
in blocks, without a mask of all pairs and with keys and values of G heads, so there the estimate is a little too large.

Measured, not derived: what a layer needs besides while it works, 8 I bytes per token, 3 I more in bfloat16 and 3 I more
with dropout and without checkpointing; and what the heap loses on the CPU, 0.75 b bytes (with dropout 1.75 b + 1, or
1.5 b + 1 with checkpointing) per layer and output value of its linear layers, 2 D + 2 I + A + 2 G h. glibc 2.36 reuses
aligned blocks of up to 32 MiB badly, by a tenth more or less from run to run; larger ones lose nothing.

Not covered: layouts other than `tree`, attention other than sdpa, norms of queries and keys, what experts copy, the
several streams of Gemma 3n (it keeps 1.7 times as much), trained projectors, DDP's buckets.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import peft
import torch

from leaf.errors import ModelError
from leaf.model.attention import Attention
from leaf.model.below import first_adapted
from leaf.model.head import tile_on
from leaf.model.loading import is_checkpointing
from leaf.model.policy import Policy

_FLOAT = 4  # float32: adapters, their gradients, AdamW's moments, logits
_BOOL = 1
# Float32 copies of a tile of logits alive at once in `leaf.model.head`: logits, weights and a soft cap's slope.
_LOGIT_COPIES = 3
_ATTENTION_INPUT = ("q_proj", "k_proj", "v_proj", "qkv_proj")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")
_MLP_INPUT = ("gate_proj", "up_proj", "gate_up_proj")
_MLP = (*_MLP_INPUT, "down_proj")


# -- what an update needs ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Estimate:
    """The memory that one process needs, by part.

    Attributes:
        weights: the model as loaded, adapter included; in half precision also the adapter's copy in that precision.
        gradient: gradients of what is trained.
        optimizer: AdamW's two moments of what is trained.
        kept_token: kept from forward to backward per padded token, over the lowest adapted layer and all above it.
        kept_pair: the same per query-key pair of the attention mask; a row of length S has S² pairs.
        layer_token: what working on one layer adds per padded token.
        logit_row: what one row of the head's tile of logits and of its sums adds at its peak.
        logit_rows: rows of that tile.
        heap_token: what a CPU's heap loses to fragmentation per padded token; 0 on CUDA.
        cache_token: keys and values of one position of one sequence in the sampler's cache, over all layers.
    """

    weights: int
    gradient: int
    optimizer: int
    kept_token: int
    kept_pair: int
    layer_token: int
    logit_row: int
    logit_rows: int
    heap_token: int
    cache_token: int

    def update(self, tokens: int, longest: int, scored: int | None = None) -> int:
        """Compute the peak of one forward and backward, on top of weights, gradients and moments.

        With n padded tokens in rows of S, of which q need a row of logits:

            n · (kept_token + heap_token) + n · S · kept_pair
            + max(min(q, logit_rows) · logit_row, n · layer_token)

        The logits come after the last layer's forward and are gone before its backward, hence the maximum.

        Args:
            tokens: n ≥ 0, padded size of the batch: rows × longest row.
            longest: S ≥ 0, tokens of the longest row; taken as n where it is more.
            scored: q in 0..n; default n, the bound, although most of a prompt needs no logits.
        """
        kept = tokens * (self.kept_token + self.heap_token + min(longest, tokens) * self.kept_pair)
        logits = min(tokens if scored is None else scored, self.logit_rows) * self.logit_row
        return kept + max(logits, tokens * self.layer_token)

    def cache(self, sequences: int, length: int) -> int:
        """Compute the sampler's cache for `sequences` = prompts × K of `length` = prompt + completion tokens."""
        return sequences * length * self.cache_token

    def total(self, tokens: int, longest: int) -> int:
        """Add up weights, gradients, moments and one update: what training needs of a GPU."""
        return self.weights + self.gradient + self.optimizer + self.update(tokens, longest)


def footprint_of(policy: Policy) -> Estimate:
    """Estimate the memory of training a policy as it is.

    Raises:
        ModelError: it has no adapter to train.
    """
    if not isinstance(policy.model, peft.PeftModel):
        raise ModelError("This policy has no adapter to train. Load it with `lora=`.")
    lora: Any = policy.model.active_peft_config
    names = [name for name, _ in policy.named_parameters() if "lora_A" in name]
    counts = policy.describe()
    return estimate(
        policy.text_config,
        parameters=counts["total"],
        trainable=counts["trainable"],
        dtype=policy.base.dtype,
        lora_r=lora.r,
        lora_layers={name.split(".lora_A.")[0].rpartition(".")[2] for name in names},
        lora_dropout=lora.lora_dropout,
        gradient_checkpointing=is_checkpointing(policy.language_model),
        device=policy.device,
        first_layer=first_adapted(policy),
    )


def estimate(
    text_config: Any,
    *,
    parameters: int,
    trainable: int,
    dtype: torch.dtype,
    lora_r: int,
    lora_layers: Collection[str],
    lora_dropout: float,
    gradient_checkpointing: bool,
    device: str | torch.device,
    first_layer: int = 0,
) -> Estimate:
    """Estimate the memory of training LoRA on a decoder with frozen weights, as the module's text says.

    Args:
        text_config: configuration of the language model.
        parameters: of the whole model, adapter included (`Policy.describe()["total"]`).
        trainable: how many of them are trained, in float32.
        dtype: of the frozen weights, float32 or of two bytes.
        lora_r, lora_layers, lora_dropout: the adapter; a layer not known here counts as one on the widest tensor.
        gradient_checkpointing: whether only the inputs of layers are kept.
        device: where it runs.
        first_layer: the lowest layer with an adapter, in 0..L−1; layers below it keep nothing for a backward pass.

    Raises:
        ModelError: the configuration does not say enough; see `_inner_size`.
    """
    hidden, inner = text_config.hidden_size, _inner_size(text_config)
    layers, heads = text_config.num_hidden_layers, text_config.num_attention_heads
    upper = layers - first_layer
    # Some configurations have no head_dim, others have it as None; both mean the quotient.
    head = getattr(text_config, "head_dim", None) or hidden // heads
    attention, keys = heads * head, text_config.num_key_value_heads * head
    size, cuda = dtype.itemsize, torch.device(device).type == "cuda"
    half = size < _FLOAT

    inners = 3 if lora_dropout and not set(lora_layers).isdisjoint(_MLP) else 2
    layer = 2 * (hidden * size + _FLOAT) + 4 * attention * size + _FLOAT * heads + inners * inner * size
    layer += _lora_token(lora_layers, lora_r, lora_dropout, (hidden, attention, inner), size=size, cuda=cuda)
    working = inner * (8 + (3 if half else 0) + (3 if lora_dropout and not gradient_checkpointing else 0))
    lost = _lost(2 * hidden + 2 * inner + attention + 2 * keys, size, lora_dropout, gradient_checkpointing)
    # Beside the layers: the last norm's input, hidden states for the head, the rotation's cosine and sine.
    ends = 2 * hidden * size + 2 * head * size
    rows, words = tile_on(torch.device(device))
    windows = len(set(Attention.of(text_config).windows.values()))
    return Estimate(
        weights=(parameters - trainable) * size + trainable * (_FLOAT + (size if half else 0)),
        gradient=trainable * _FLOAT,
        optimizer=2 * trainable * _FLOAT,
        kept_token=ends + upper * (hidden * size if gradient_checkpointing else layer),
        kept_pair=windows * size + 2 * _BOOL if cuda else 0,
        layer_token=working + (layer if gradient_checkpointing else 0),
        logit_row=_LOGIT_COPIES * _FLOAT * min(words, text_config.vocab_size) + (_FLOAT + size) * hidden,
        logit_rows=rows,
        heap_token=0 if cuda else upper * lost,
        cache_token=2 * layers * keys * size,
    )


def _inner_size(text_config: Any) -> int:
    """Find the widest MLP that a token passes through; experts that work on one token count together.

    Raises:
        ModelError: the configuration has experts and does not say how many of them work on a token.
    """
    sizes = text_config.intermediate_size
    size = max(sizes) if isinstance(sizes, list | tuple) else sizes
    # Configurations of models without experts lack these names, or have them as None (Gemma 4).
    width = getattr(text_config, "moe_intermediate_size", None)
    if width is None:
        return size
    for name in _EXPERTS_PER_TOKEN:
        if (working := getattr(text_config, name, None)) is not None:
            return max(size, working * width)
    raise ModelError(
        f"The configuration {text_config.model_type} has experts of width {width}, but none of "
        f"{', '.join(_EXPERTS_PER_TOKEN)} says how many work on a token, so memory cannot be estimated. "
        "Train a step to see whether it fits."
    )


def _lost(values: int, size: int, dropout: float, checkpointing: bool) -> int:
    """Compute what the heap loses per token on the CPU, in a layer of so many output values of `size` bytes."""
    quarters = ((6 if checkpointing else 7) * size + 4) if dropout else 3 * size
    return values * quarters // 4


def _lora_token(
    names: Collection[str], rank: int, dropout: float, widths: tuple[int, int, int], *, size: int, cuda: bool
) -> int:
    """Compute what the adapters of one decoder layer keep per token; `widths` are D, A and I."""
    hidden, attention, inner = widths
    reads = dict.fromkeys(_ATTENTION_INPUT + _MLP_INPUT, hidden) | {"o_proj": attention, "down_proj": inner}
    read = [reads.get(name, max(widths)) for name in names]
    total = size * rank * len(read)
    if dropout:
        return total + sum(read) * (size + (_BOOL if cuda else size))
    shared = sum(hidden for inputs in (_ATTENTION_INPUT, _MLP_INPUT) if any(name in inputs for name in names))
    own = sum(width for name, width in zip(names, read, strict=True) if name not in reads)
    return total + size * (shared + own)

"""The policy: a speech LLM of transformers with LoRA on its language model.

A policy embeds prompts, decodes embeddings to hidden states and reads log-probabilities from these. Two functions work
on it: `sample` (leaf.model.sampling) and `score` (leaf.model.scoring). A prompt is embedded once, audio included; its
embeddings serve sampling, the old and the reference log-probabilities and the update. The reference model is the same
model with its adapter switched off.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import peft
import torch
from torch import Tensor, nn

from leaf.checksums import write_checksums
from leaf.data.rows import Example
from leaf.errors import ModelError
from leaf.memory import in_parts
from leaf.model import prompts as prompting
from leaf.model.attention import Attention
from leaf.model.device import pick_dtype
from leaf.model.families import family_of
from leaf.model.family import Family
from leaf.model.head import read_log_probs
from leaf.model.kernels import put_own_attention
from leaf.model.loading import load_model, with_adapter

TOO_LONG = (
    "Memory ran out while the audio of a single prompt was encoded. Shorten the audio, use dtype: bfloat16 or a larger "
    "device."
)


@dataclass(frozen=True)
class Prompt:
    """One embedded prompt: `embeddings` (L, D), and `is_audio` (L,), True where they came from audio."""

    embeddings: Tensor
    is_audio: Tensor

    @property
    def length(self) -> int:
        """L, the number of positions."""
        return self.embeddings.shape[0]


class _Reached(Exception):
    """Carries a submodule's inputs out of the outer forward, which it ends."""


class Policy(nn.Module):
    """A speech LLM to train with RL: an nn.Module for its parameters, `train` and `to`, without a forward of its own.

    Args:
        model: a transformers model of a known family, wrapped by peft or plain (then nothing is trainable).
        processor: its processor.
        temperature: divides the logits wherever log-probabilities are taken; in (0, inf).
        token_budget: largest padded size (rows × longest row) of one scoring forward.
        max_prompt_tokens: longest prompt accepted, audio and text together; None for no limit.
        layout: `tree`, `prompt_once` or `copies` (leaf.model.scoring); None for the fastest that the layers allow.
        base_name: what saved adapters call the base model; None for the path or hub id it was loaded from.

    Attributes:
        rows_at_once: how many prompts fit in memory when embedded together; None while all have fitted.
        keeps_prompts: whether the graph of sampled prompts has fitted beside sampling.
        shares_below: whether layers below the adapter may be run once (leaf.model.below); the start-up checks decide.
        sampled_at_once: how many padded tokens of prompts and completions were found to fit when sampled together.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        temperature: float = 1.0,
        token_budget: int = 4096,
        max_prompt_tokens: int | None = None,
        layout: str | None = None,
        base_name: str | None = None,
    ):
        super().__init__()
        self.model = model
        self.processor = processor
        self.temperature = temperature
        self.token_budget = token_budget
        self.max_prompt_tokens = max_prompt_tokens
        self.layout = layout
        self.base_name = base_name
        self.family: Family = family_of(self.base.config)
        self.rows_at_once: int | None = 1 if self.family.alone else None
        self.sampled_at_once: int | None = None
        self.keeps_prompts = self.shares_below = True
        self.logits_scale = self.family.logits_scale(self.base.config)
        self.logits_cap = self.family.logits_cap(self.base.config)
        self.attention = Attention.of(put_own_attention(self.language_model, self.text_config))
        self.audio_token_id = prompting.placeholder_id(self.family, self.tokenizer)
        self.eos_token_ids = _eos_ids(self.base, self.tokenizer)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: peft.LoraConfig | None = None,
        adapter: str | Path | None = None,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        attention: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a checkpoint with a fresh LoRA, a saved adapter or none.

        Args:
            path: a checkpoint directory or hub id. Weights are read from safetensors only; nothing is unpickled.
            lora, adapter, gradient_checkpointing: as in `wrap`.
            dtype: float32, bfloat16 or auto, which is bfloat16 where the device computes in it.
            device: where the model goes.
            trust_remote_code: whether the checkpoint's own Python may run.
            attention: a kernel of transformers by name; None takes sdpa where the model has it. Flash and flex kernels
                take no tree mask, so the prompt then runs once and the completions behind it (leaf.model.scoring).
            options: further arguments of `Policy`.

        Raises:
            ModelError: the checkpoint cannot be loaded, is of no known family, or has no safetensors.
        """
        name, precision = os.path.expanduser(str(path)), pick_dtype(dtype, device)
        model, processor = load_model(name, dtype=precision, attention=attention, trust_remote_code=trust_remote_code)
        adapters = {"lora": lora, "adapter": adapter, "gradient_checkpointing": gradient_checkpointing}
        return cls.wrap(model.to(device), processor, **adapters, **options)

    @classmethod
    def wrap(
        cls,
        model: Any,
        processor: Any,
        *,
        lora: peft.LoraConfig | None = None,
        adapter: str | Path | None = None,
        gradient_checkpointing: bool = False,
        **options: Any,
    ) -> Self:
        """Freeze a loaded model, put an adapter on its language model and make a policy of both.

        Args:
            model: a transformers model of a known family; changed in place.
            processor: its processor.
            lora: settings of a fresh adapter. Its target_modules may be left out (all of attention and MLP), name
                layers of the language model or be a regular expression. What it excludes stays excluded, as does
                everything outside the language model's layers. It is read, not changed.
            adapter: a saved adapter instead; beside `lora` it is trained further.
            gradient_checkpointing: keep only each layer's input and compute the rest again in the backward pass.
            options: further arguments of `Policy`.
        """
        family = family_of(model.config)
        adapted = with_adapter(model, family, lora, adapter, gradient_checkpointing=gradient_checkpointing)
        return cls(adapted, processor, **options).eval()

    # -- parts ---------------------------------------------------------------------------------------------------------
    @property
    def base(self) -> Any:
        """The transformers model without the peft wrapper."""
        return self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def text_config(self) -> Any:
        """The configuration of the language model."""
        return self.base.config.get_text_config(decoder=True)

    @property
    def language_model(self) -> Any:
        """The decoder stack, which takes embeddings."""
        return self.family.module(self.base, self.family.language_model)

    @property
    def audio_tower(self) -> nn.Module:
        """The audio encoder."""
        return self.family.module(self.base, self.family.audio_tower)

    @property
    def projector(self) -> nn.Module:
        """The projector from audio features into the embedding space."""
        return self.family.module(self.base, self.family.projector)

    @property
    def head(self) -> nn.Linear:
        """The frozen projection from hidden states to the vocabulary."""
        head = self.family.module(self.base, self.family.head)
        if type(head) is not nn.Linear:
            raise ModelError(
                f"The output head is a {type(head).__name__}; it has to be one linear layer without an adapter. Leave "
                "it out of the adapter's layers."
            )
        return head

    @property
    def device(self) -> torch.device:
        """The device of the language model's embeddings."""
        return self.base.get_input_embeddings().weight.device

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and gradient checkpointing of the language model; the audio side always stays in eval."""
        super().train(mode)
        self.audio_tower.eval()
        self.projector.eval()
        return self

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off inside the block: the policy is then the reference model."""
        if not isinstance(self.model, peft.PeftModel):
            raise ModelError("This policy has no adapter, so it has no reference model. Load it with `lora=`.")
        with self.model.disable_adapter():
            yield

    def describe(self) -> dict[str, int]:
        """Count parameters: trainable, in all, and by part (audio tower, projector, language model)."""
        parts = {"audio_tower": self.audio_tower, "projector": self.projector, "language_model": self.language_model}
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {"trainable": trainable, "total": _count(self)} | {name: _count(part) for name, part in parts.items()}

    def save_adapter(self, directory: str | Path) -> None:
        """Write the adapter as peft does (safetensors), so that plain transformers + peft loads it, and its checksums.

        Its adapter_config.json calls the base model `base_name`, or by the name it was loaded from.
        """
        if not isinstance(self.model, peft.PeftModel):
            raise ModelError("This policy has no adapter to save. Load it with `lora=`.")
        if self.base_name is not None:
            self.model.active_peft_config.base_model_name_or_path = self.base_name
        # No adapter is on the embeddings; to find that out, peft would ask the hub for the base's configuration.
        self.model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
        write_checksums(Path(directory))

    # -- embedding -----------------------------------------------------------------------------------------------------
    def render(self, prompt: str | Sequence[Mapping[str, Any]]) -> str:
        """Render a prompt as model input text; see leaf.model.prompts for the shapes it may have."""
        return prompting.render(self.family, self.processor, prompt)

    def token_ids(self, text: str) -> list[int]:
        """Tokenise text as it is, without special tokens around it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def end_of_answer(self) -> int:
        """The end token to teach: the one that the chat template writes after an assistant's turn."""
        return prompting.end_of_answer(self.family, self.processor, self.eos_token_ids)

    def inputs(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Turn rows with `prompt` and `audio` into the processor's tensors, on the model's device and in its precision.

        Raises:
            AudioError, DataError, ModelError: a row cannot be used; see leaf.model.prompts.
        """
        batch = prompting.encode(self.family, self.processor, rows, self.max_prompt_tokens)
        return {
            key: value.to(self.device, self.base.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
        }

    def embed(self, rows: Sequence[Example]) -> list[Prompt]:
        """Embed prompts, audio included; the graph is kept only while the projector is trained.

        Where memory runs out, fewer rows at a time go through the encoder, from then on too (`rows_at_once`).

        Raises:
            AudioError, DataError, ModelError: a row cannot be used; see leaf.model.prompts.
            RunError: memory does not suffice for one row.
        """
        return in_parts(self, "rows_at_once", rows, self._embed, alone=TOO_LONG)

    def _embed(self, rows: Sequence[Example]) -> list[Prompt]:
        inputs = self.inputs(rows)
        trained = any(p.requires_grad for p in self.projector.parameters())
        with nullcontext() if trained else torch.no_grad():
            embeddings = self._embeddings(inputs)
        is_audio, real = inputs["input_ids"] == self.audio_token_id, inputs["attention_mask"].bool()
        if embeddings.shape[:2] != is_audio.shape:
            raise ModelError(
                f"{type(self.base).__name__} made {tuple(embeddings.shape[:2])} embeddings of {tuple(is_audio.shape)} "
                "prompt tokens. Its processor did not write one placeholder per audio frame; use its current version."
            )
        return [Prompt(row[keep], audio[keep]) for row, keep, audio in zip(embeddings, real, is_audio, strict=True)]

    def _embeddings(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the outer forward up to where the prompt is embedded, and no further: (rows, L, D)."""
        path, name = self.family.embeddings_at or (self.family.language_model, "inputs_embeds")
        args, kwargs = self.run_until(self.family.module(self.base, path), inputs)
        embeddings = args[0] if name is None else kwargs[name]
        if self.family.per_token is not None:
            # These are a function of token ids, which nothing after this knows: they travel behind the embeddings.
            embeddings = torch.cat([embeddings, kwargs[self.family.per_token[0]].flatten(2)], -1)
        return embeddings

    def run_until(self, module: nn.Module, inputs: dict[str, Tensor]) -> tuple[tuple, dict[str, Any]]:
        """Run the outer forward until it calls `module`, and return the arguments of that call.

        So each model class merges audio and text with its own code, and the decoder does not run.
        """

        def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            raise _Reached(args, kwargs)

        handle = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.base(**inputs, **self.family.forward, use_cache=False)
        except _Reached as caught:
            return caught.args[0], caught.args[1]
        finally:
            handle.remove()
        raise ModelError(f"The forward of {type(self.base).__name__} never reached its {type(module).__name__}.")

    def reembed(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """Bring prompts up to date before they are scored.

        Token embeddings are frozen here, so prompts come back as they are. A policy that trains them overrides this and
        embeds the text of its prompts again.
        """
        return prompts

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed token ids in the model's precision; further inputs per token come behind the embeddings."""
        embeddings = self.base.get_input_embeddings()(tokens).to(self.base.dtype)
        if self.family.per_token is not None:
            extra = getattr(self.language_model, self.family.per_token[1])(tokens)
            embeddings = torch.cat([embeddings, extra.flatten(-2).to(embeddings.dtype)], -1)
        return embeddings

    # -- decoding and reading ------------------------------------------------------------------------------------------
    def decode(self, embeddings: Tensor, **arguments: Any) -> Tensor:
        """Run the decoder stack on embeddings (R, S, D) and return its last hidden states (R, S, D)."""
        if self.family.per_token is not None:  # take apart what `embed_tokens` has joined
            layers, width = self.text_config.num_hidden_layers, self.text_config.hidden_size
            arguments[self.family.per_token[0]] = embeddings[..., width:].unflatten(-1, (layers, -1))
            embeddings = embeddings[..., :width]
        with self.precision():
            hidden = self.language_model(inputs_embeds=embeddings.to(self.base.dtype), **arguments).last_hidden_state
        return hidden.to(self.base.dtype)  # CUDA's autocast computes some powers in float32 (Gemma 3n)

    def precision(self) -> Any:
        """Make the context in which adapters, held in float32, compute in the precision of the weights around them.

        Code that runs adapted layers of a half-precision model without `decode` has to be inside it.
        """
        half = self.base.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, dtype=self.base.dtype, enabled=half)

    @property
    def scale(self) -> float:
        """What the head's output is divided by: the family's scale times the temperature."""
        return self.logits_scale * self.temperature

    @property
    def cap(self) -> float | None:
        """The soft cap of the logits at the policy's temperature, None for none."""
        # cap·tanh(l / cap) / temperature = (cap / temperature)·tanh((l / temperature) / (cap / temperature))
        return None if self.logits_cap is None else self.logits_cap / self.temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute float32 logits (..., V) at the policy's temperature from hidden states (..., D)."""
        logits = self.head(hidden).float().div_(self.scale)  # in place: they are large
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def read(self, hidden: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Read log-probabilities and entropies (N,) of `token` at the rows `row` of hidden states (Q, D).

        The head is frozen here. A policy that trains it overrides this and reads from `logits`, which keeps a graph.
        """
        if torch.is_grad_enabled() and self.head.weight.requires_grad:
            raise ModelError("The output head is being trained, but scoring gives it no gradient. Freeze it.")
        return read_log_probs(self.head, hidden, row, token, scale=self.scale, cap=self.cap)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Find the token ids that end a completion: the generation config's, else the tokenizer's."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None:
        raise ModelError("Neither the generation config nor the tokenizer names an end-of-sequence token; set one.")
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)

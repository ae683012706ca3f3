"""The policy: a speech-aware LLM of transformers with LoRA on its language model.

A prompt (audio and text) is embedded once; the embeddings serve sampling, old and reference log-probabilities and the
update. Scoring runs one tree-packed forward per micro-batch of groups (leaf.model.scoring says what runs where that is
not possible). The reference model is the adapter switched off.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leaf.errors import ModelError
from leaf.memory import in_parts
from leaf.model import prompts as prompting
from leaf.model.attention import Attention
from leaf.model.device import pick_dtype
from leaf.model.families import Family, family_of
from leaf.model.footprint import Estimate, estimate
from leaf.model.head import read_log_probs
from leaf.model.loading import load_model, put_lora
from leaf.model.own_adapter import merge_own_adapter, refuse_pickle

_FRAME_WISE = (
    "Stage align caches the encoder's frames and needs a projector that maps them one by one, as that of "
    "AudioFlamingo3 does; train this one on references with stage sft and train_projector: true."
)

_TOO_LONG = (
    "Memory ran out while the audio of a single prompt was encoded. Shorten the audio, use dtype: bfloat16 or a larger "
    "device."
)


@dataclass(frozen=True)
class Prompt:
    """Hold one embedded prompt: `embeddings` (P, D); `is_audio` (P,) is True where they came from audio."""

    embeddings: Tensor
    is_audio: Tensor

    @property
    def length(self) -> int:
        """Return P, the number of positions."""
        return self.embeddings.shape[0]


class _Reached(Exception):
    """Carries a submodule's inputs out of the outer forward, which then stops."""


class Policy(nn.Module):
    """Wrap a speech-aware LLM for RL: embed prompts, score prefix trees, save the adapter.

    Args:
        model: a transformers model of a known family, already wrapped by peft or plain (then nothing is trainable).
        processor: its processor.
        temperature: divides the logits wherever log-probabilities are taken; in (0, inf).
        token_budget: largest padded size (rows × longest row) of one scoring forward.
        layout: how completions are to be scored: `tree`, `prompt_once` or `copies` (leaf.model.scoring); None for the
            fastest that is right for the model's layers.
        base_name: what saved adapters call the base model; None for the path or hub id it was loaded from.
        logit_rows: rows of the head computed at once; none of their logits is kept.
        max_prompt_tokens: longest prompt accepted, audio and text together; None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        temperature: float = 1.0,
        token_budget: int = 4096,
        logit_rows: int = 1024,
        max_prompt_tokens: int | None = None,
        layout: str | None = None,
        base_name: str | None = None,
    ):
        super().__init__()
        self.model = model
        self.processor = processor
        self.temperature = temperature
        self.token_budget = token_budget
        self.logit_rows = logit_rows
        self.max_prompt_tokens = max_prompt_tokens
        self.base_name = base_name
        # What memory was found to allow, None for all that comes: prompts embedded together, and the padded tokens of
        # prompts and their completions sampled together.
        self.rows_at_once: int | None = None
        self.sampled_at_once: int | None = None
        self.family: Family = family_of(self.base.config)
        if self.family.alone:
            self.rows_at_once = 1
        self.logits_scale = self.family.logits_scale(self.base.config)
        self.logits_cap = self.family.logits_cap(self.base.config)
        self.attention = Attention.of(self.text_config)
        self.layout = layout
        self.audio_token_id = self.tokenizer.convert_tokens_to_ids(self.family.audio_token)
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
    ) -> "Policy":
        """Load a checkpoint directory or hub id, with a fresh LoRA (`lora`), a saved one (`adapter`) or none.

        `attention` names a kernel of transformers; None takes sdpa where the model has it. Flash and flex kernels take
        no tree mask, so prompts are then run once and completions behind them (leaf.model.scoring). `dtype` is
        float32, bfloat16 or auto: bfloat16 where the device computes in it. Weights are read from safetensors only;
        nothing is unpickled.

        Raises:
            ModelError: the checkpoint cannot be loaded, is of no known family, or has no safetensors.
        """
        model, processor = load_model(
            str(path), dtype=pick_dtype(dtype, device), attention=attention, trust_remote_code=trust_remote_code
        )
        return cls.wrap(
            model.to(device),
            processor,
            lora=lora,
            adapter=adapter,
            gradient_checkpointing=gradient_checkpointing,
            **options,
        )

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
    ) -> "Policy":
        """Freeze a loaded model, put LoRA on its language model and wrap both; see `load`.

        `lora` is read, not changed. Its target_modules may be left out (all of attention and MLP), name layers of the
        language model or be a regular expression; what it excludes stays excluded, and everything outside the language
        model's layers is excluded besides.
        """
        family = family_of(model.config)
        merge_own_adapter(model)
        model.requires_grad_(False)
        if gradient_checkpointing:
            decoder: Any = family.module(model, family.language_model)  # some outer classes do not support it
            decoder.activation_checkpointing_enable({"use_reentrant": False})
        if adapter is not None:
            refuse_pickle(adapter)
            model = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=lora is not None)
        elif lora is not None:
            model = put_lora(model, family, lora)
        if model.dtype in (torch.bfloat16, torch.float16):
            # Otherwise peft copies the input of every adapter to float32, to keep and to multiply (see `precision`).
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.cast_input_dtype_enabled = False  # type: ignore[assignment]
        return cls(model, processor, **options).eval()

    # -- parts ---------------------------------------------------------------------------------------------------------
    @property
    def base(self) -> Any:
        """Return the transformers model without the peft wrapper."""
        return self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model

    @property
    def tokenizer(self) -> Any:
        """Return the processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def text_config(self) -> Any:
        """Return the configuration of the language model."""
        return self.base.config.get_text_config(decoder=True)

    @property
    def language_model(self) -> Any:
        """Return the decoder stack that takes embeddings."""
        return self.family.module(self.base, self.family.language_model)

    @property
    def projector(self) -> nn.Module:
        """Return the projector from audio features into the embedding space."""
        return self.family.module(self.base, self.family.projector)

    @property
    def head(self) -> nn.Linear:
        """Return the frozen projection from hidden states to the vocabulary."""
        head = self.family.module(self.base, self.family.head)
        if type(head) is not nn.Linear:
            raise ModelError(
                f"The output head is a {type(head).__name__}; it has to be one linear layer without an adapter. Leave "
                "it out of the adapter's layers."
            )
        return head

    @property
    def scale(self) -> float:
        """Return what the head's output is divided by: the family's scale times the temperature."""
        return self.logits_scale * self.temperature

    @property
    def cap(self) -> float | None:
        """Return the soft cap of the logits at the policy's temperature, None for none."""
        return None if self.logits_cap is None else self.logits_cap / self.temperature

    @property
    def device(self) -> torch.device:
        """Return the device of the language model's embeddings."""
        return self.base.get_input_embeddings().weight.device

    def unfreeze_projector(self) -> list[nn.Parameter]:
        """Make the projector trainable in float32, whatever the precision around it, and return its parameters."""
        dtype = self.base.dtype
        # Some outer classes give the encoder its features in the projector's precision (Phi-4-multimodal).
        self.family.module(self.base, self.family.audio_tower).register_forward_pre_hook(
            lambda module, args, kwargs: (
                tuple(_cast(x, dtype) for x in args),
                {key: _cast(x, dtype) for key, x in kwargs.items()},
            ),
            with_kwargs=True,
        )
        projector = self.projector.float().requires_grad_(True)
        projector.register_forward_pre_hook(
            lambda module, args, kwargs: (
                tuple(_cast(x, torch.float32) for x in args),
                {key: _cast(x, torch.float32) for key, x in kwargs.items()},
            ),
            with_kwargs=True,
        )
        projector.register_forward_hook(lambda module, args, output: output.to(dtype))
        return list(projector.parameters())

    def train(self, mode: bool = True) -> "Policy":
        """Switch dropout and gradient checkpointing of the language model; the audio side always stays in eval."""
        super().train(mode)
        self.family.module(self.base, self.family.audio_tower).eval()
        self.projector.eval()
        return self

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off for the time of the block: the policy is then the reference model."""
        if not isinstance(self.model, peft.PeftModel):
            raise ModelError("This policy has no adapter, so it has no reference model. Load it with `lora=`.")
        with self.model.disable_adapter():
            yield

    def memory(self) -> Estimate:
        """Estimate what training this policy takes; see leaf.memory."""
        if not isinstance(self.model, peft.PeftModel):
            raise ModelError("This policy has no adapter to train. Load it with `lora=`.")
        lora: Any = self.model.active_peft_config
        adapted = {
            name.split(".lora_A.")[0].rpartition(".")[2] for name, _ in self.named_parameters() if "lora_A" in name
        }
        counts = self.describe()
        return estimate(
            self.text_config,
            parameters=counts["total"],
            trainable=counts["trainable"],
            dtype=self.base.dtype,
            lora_r=lora.r,
            lora_layers=adapted,
            lora_dropout=lora.lora_dropout,
            gradient_checkpointing=self.language_model.is_activation_checkpointing,
            logit_rows=self.logit_rows,
            device=self.device,
        )

    def describe(self) -> dict[str, int]:
        """Count parameters: trainable, in all, and by part (audio tower, projector, language model)."""
        parts = {"audio_tower": self.family.audio_tower, "projector": self.family.projector}
        parts["language_model"] = self.family.language_model
        counts = {name: _count(self.family.module(self.base, path)) for name, path in parts.items()}
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {"trainable": trainable, "total": _count(self), **counts}

    # -- prompts -------------------------------------------------------------------------------------------------------
    def render(self, prompt: str | Sequence[Mapping[str, Any]]) -> str:
        """Render a prompt as model input text; see leaf.model.prompts for the shapes it may have."""
        return prompting.render(self.family, self.processor, prompt)

    def token_ids(self, text: str) -> list[int]:
        """Tokenise text as it stands, without special tokens added around it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def inputs(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Turn rows with `prompt` and `audio` into the processor's tensors on the model's device and precision."""
        batch = prompting.encode(self.family, self.processor, examples, self.max_prompt_tokens)
        return {
            key: value.to(self.device, self.base.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
        }

    def embed(self, examples: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        """Embed prompts, audio encoded once; the graph is kept only where the audio side is being trained.

        Where memory runs out, fewer rows at a time go through the encoder, now and from then on (`rows_at_once`).

        Raises:
            AudioError, DataError, ModelError: a row that cannot be used; see leaf.model.prompts.
            RunError: memory does not suffice for one row.
        """
        return in_parts(self, "rows_at_once", examples, self._embed, alone=_TOO_LONG)

    def _embed(self, examples: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        inputs = self.inputs(examples)
        trained = any(p.requires_grad for p in self.projector.parameters())
        with nullcontext() if trained else torch.no_grad():
            embeddings = self._embedded(inputs)
        is_audio, real = inputs["input_ids"] == self.audio_token_id, inputs["attention_mask"].bool()
        if embeddings.shape[:2] != is_audio.shape:
            raise ModelError(
                f"{type(self.base).__name__} made {tuple(embeddings.shape[:2])} embeddings of {tuple(is_audio.shape)} "
                "prompt tokens. Its processor did not write one placeholder per audio frame; use its current version."
            )
        return [Prompt(row[keep], audio[keep]) for row, keep, audio in zip(embeddings, real, is_audio, strict=True)]

    @torch.no_grad()
    def audio_features(self, examples: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Return what the projector is given for each row's audio, (F, width): the frozen encoder's output.

        For projectors that map frame by frame, one frame per audio position of the prompt.
        """
        return in_parts(self, "rows_at_once", examples, self._audio_features, alone=_TOO_LONG)

    def _audio_features(self, examples: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        inputs = self.inputs(examples)
        counts = (inputs["input_ids"] == self.audio_token_id).sum(-1).tolist()
        args, kwargs = self._stopped_at(self.projector, inputs)
        given = [*args, *kwargs.values()]
        whole = len(given) == 1 and isinstance(given[0], Tensor) and given[0].ndim == 3
        if not whole or given[0].shape[0] != len(counts) or given[0].shape[1] < max(counts):
            shapes = ", ".join(str(tuple(one.shape)) for one in given if isinstance(one, Tensor))
            raise ModelError(
                f"The projector of {type(self.base).__name__} takes tensors of shape {shapes}, not one frame per audio "
                f"position (rows, at least {max(counts)} frames, width) alone. {_FRAME_WISE}"
            )
        return [row[:count] for row, count in zip(given[0], counts, strict=True)]

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the projector's output (F, D) for what `audio_features` gave, (F, width) for each row."""
        joined = torch.cat(list(features))[None].to(self.base.dtype)
        frames = self.projector(joined)
        if frames.shape[:2] != joined.shape[:2]:
            raise ModelError(
                f"The projector of {type(self.base).__name__} makes {frames.shape[1]} embeddings of {joined.shape[1]} "
                f"frames, not one of each. {_FRAME_WISE}"
            )
        return list(frames[0].split([len(part) for part in features]))

    def _embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the outer forward up to where the prompt is embedded and return the embeddings (rows, P, D)."""
        path, name = self.family.embeddings_at or (self.family.language_model, "inputs_embeds")
        args, kwargs = self._stopped_at(self.family.module(self.base, path), inputs)
        embeddings = args[0] if name is None else kwargs[name]
        if self.family.per_token is not None:
            embeddings = torch.cat([embeddings, kwargs[self.family.per_token[0]].flatten(2)], -1)
        return embeddings

    def _stopped_at(self, module: nn.Module, inputs: dict[str, Tensor]) -> tuple[tuple, dict[str, Any]]:
        """Run the outer forward until it calls `module`, and return what it is called with."""

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

        Token embeddings are frozen here, so prompts come back as they are; a policy that trains them embeds the text of
        its prompts anew.
        """
        return prompts

    # -- decoding and reading ------------------------------------------------------------------------------------------
    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits at the policy's temperature for hidden states (..., D)."""
        logits = self.head(hidden).float() / self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def read(self, hidden: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Read log-probabilities and entropies (N,) of `token` at the rows `row` of hidden states (Q, D).

        The head is frozen here; a policy that trains it reads with `logits` instead, which keeps them.
        """
        if torch.is_grad_enabled() and self.head.weight.requires_grad:
            raise ModelError("The output head is being trained, but scoring gives it no gradient. Freeze it.")
        return read_log_probs(self.head, hidden, row, token, scale=self.scale, cap=self.cap, rows=self.logit_rows)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of token ids in the model's precision, further inputs per token behind them."""
        embeddings = self.base.get_input_embeddings()(tokens).to(self.base.dtype)
        if self.family.per_token is not None:
            extra = getattr(self.language_model, self.family.per_token[1])(tokens)
            embeddings = torch.cat([embeddings, extra.flatten(-2).to(embeddings.dtype)], -1)
        return embeddings

    def decode(self, embeddings: Tensor, **arguments: Any) -> Tensor:
        """Run the decoder stack on embeddings (R, S, D) and return its last hidden states (R, S, D)."""
        if self.family.per_token is not None:
            layers, width = self.text_config.num_hidden_layers, self.text_config.hidden_size
            arguments[self.family.per_token[0]] = embeddings[..., width:].unflatten(-1, (layers, -1))
            embeddings = embeddings[..., :width]
        with self.precision():
            hidden = self.language_model(inputs_embeds=embeddings.to(self.base.dtype), **arguments).last_hidden_state
        return hidden.to(self.base.dtype)  # CUDA's autocast computes some powers in float32 (Gemma 3n)

    def precision(self) -> Any:
        """Return the context in which adapters, held in float32, compute in the precision of the weights around them.

        Whatever runs adapted layers of a half-precision model other than through this policy has to be inside it.
        """
        half = self.base.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, dtype=self.base.dtype, enabled=half)

    # -- saving --------------------------------------------------------------------------------------------------------
    def save_adapter(self, directory: str | Path) -> None:
        """Write the adapter as peft does (safetensors), so that plain transformers + peft loads it.

        Its adapter_config.json names the base model by `base_name`, or as it was loaded where that is None.
        """
        if not isinstance(self.model, peft.PeftModel):
            raise ModelError("This policy has no adapter to save. Load it with `lora=`.")
        if self.base_name is not None:
            self.model.active_peft_config.base_model_name_or_path = self.base_name
        # No adapter is on the embeddings; to find out for itself, peft would ask the hub for the base's configuration.
        self.model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)

    def save_projector(self, file: str | Path) -> None:
        """Write the projector's weights as safetensors."""
        save_file({key: value.detach().cpu().contiguous() for key, value in self.projector.state_dict().items()}, file)

    def load_projector(self, file: str | Path) -> None:
        """Read projector weights written by `save_projector`; other shapes or names are a ModelError."""
        try:
            self.projector.load_state_dict(load_file(file))
        except SafetensorError as error:
            raise ModelError(
                f"The projector file {file} is not in safetensors: {error}. Nothing else is read, since a .bin or .pt "
                "file may hold code."
            ) from error
        except (RuntimeError, OSError) as error:
            raise ModelError(f"The projector file {file} does not fit this model: {error}") from error


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return floating-point tensors in another precision and anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the token ids that end a completion: the generation config's, else the tokenizer's."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None:
        raise ModelError("Neither the generation config nor the tokenizer names an end-of-sequence token; set one.")
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)

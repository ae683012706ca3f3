"""Describe what differs between the speech model classes of transformers: a few fields each.

Nothing else in the library asks for a model class. leaf.model.families has those that are known.
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
from torch import nn
from transformers import AutoModelForMultimodalLM, PreTrainedConfig

from leaf.errors import ModelError, did_you_mean

Message = Mapping[str, Any]


def encode_text(processor: Any, texts: Sequence[str], waves: Sequence[np.ndarray], rate: int) -> Mapping[str, Any]:
    """Run a processor that takes rendered texts with one audio placeholder each, and waveforms (float32, mono)."""
    return processor(
        text=list(texts),
        audio=list(waves),
        # Only the text is padded: features keep the encoder's own window. Templates write the first token themselves.
        text_kwargs={"padding": True, "add_special_tokens": False},
        audio_kwargs={"sampling_rate": rate},
        return_tensors="pt",
    )


def encode_conversation(
    processor: Any, conversations: Sequence[Sequence[Message]], waves: Sequence[np.ndarray], rate: int
) -> Mapping[str, Any]:
    """Run a processor that takes whole conversations with the audio in them (mistral-common's chat template)."""
    filled = []
    for conversation, wave in zip(conversations, waves, strict=True):
        sound = io.BytesIO()
        soundfile.write(sound, wave, rate, format="WAV", subtype="FLOAT")  # float32 in, the same float32 out
        audio = {"type": "audio", "base64": base64.b64encode(sound.getvalue()).decode("ascii")}
        filled.append([{**message, "content": _put(message["content"], audio)} for message in conversation])
    return processor.apply_chat_template(filled, processor_kwargs={"text_kwargs": {"padding": True}})


def _put(content: Any, audio: Mapping[str, Any]) -> Any:
    """Put the recording in the place of a message's audio parts."""
    return content if isinstance(content, str) else [audio if part.get("type") == "audio" else part for part in content]


@dataclass(frozen=True)
class Family:
    """What one model class does differently.

    Attributes:
        model_type: `config.model_type` of the checkpoint.
        language_model: path from the outer model to the decoder stack that takes `inputs_embeds`.
        audio_tower, projector: paths to the audio encoder and to the projector into the embedding space.
        audio_output: path to the module whose output is put in the placeholders' places; None for the projector itself.
        audio_token: placeholder token: once in a rendered prompt, once per audio embedding in the processor's ids.
        max_seconds: longest audio the processor takes without cutting, in seconds, read from the processor.
        audio_limit: the same in words, for checkpoints as published.
        head: path to the output projection from hidden states to vocabulary logits.
        embeddings_at: path of the module whose input is the embedded prompt, and the argument's name (None: the first
            positional one); default the language model's `inputs_embeds`.
        auto_model: the auto class of transformers (or model class) that loads the checkpoint with its head.
        feature_extractor: attribute of the processor that holds the feature extractor.
        structured: True where the chat template takes content as a list of parts; False where content is a string
            with the placeholder in it.
        encode: turns rendered prompts and waveforms into the processor's batch; `encode_text` or
            `encode_conversation` (then prompts stay conversations).
        adapter: sub-folder of the checkpoint ("" for its root) with a speech LoRA of the model's own, which is merged
            into the weights on loading, so that the reference is the model as published; None where there is none.
        logits_scale: what the head's output has to be divided by (Granite), read from the configuration.
        logits_cap: soft cap c of the logits, c·tanh(logits / c) (Gemma), read from the configuration; None for none.
        per_token: argument of the decoder stack that takes a further input per token, (rows, tokens, layers, width),
            and the decoder's method that makes it from token ids (Gemma 3n); None for none.
        alone: True where a prompt's embeddings depend on the others of its batch: prompts are then embedded one by one.
        forward: further arguments of the outer forward.
        lora_layers: linear layers that get an adapter by default; None for all of attention and MLP.
        extra: the optional extra of this package that its processor needs (leaf.errors.install_extra); None for
            none.
        note: what a user of this family should know, shown at start-up; "" for nothing.
    """

    model_type: str
    language_model: str
    audio_tower: str
    projector: str
    audio_token: str
    max_seconds: Callable[[Any], float]
    audio_limit: str = "as its processor says"
    head: str = "lm_head"
    audio_output: str | None = None
    embeddings_at: tuple[str, str | None] | None = None
    auto_model: Any = AutoModelForMultimodalLM
    feature_extractor: str = "feature_extractor"
    structured: bool = True
    encode: Callable[[Any, Any, Sequence[np.ndarray], int], Mapping[str, Any]] = encode_text
    adapter: str | None = None
    logits_scale: Callable[[PreTrainedConfig], float] = lambda config: 1.0
    logits_cap: Callable[[PreTrainedConfig], float | None] = lambda config: None
    per_token: tuple[str, str] | None = None
    alone: bool = False
    forward: Mapping[str, Any] = field(default_factory=dict)
    lora_layers: tuple[str, ...] | None = None
    extra: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse fields of another kind than they have to be, which would fail deep inside a run.

        Raises:
            ModelError: there is such a field; it is named.
        """
        for name in ("max_seconds", "logits_scale", "logits_cap", "encode"):
            value = getattr(self, name)
            if not callable(value):
                given = "processor" if name == "max_seconds" else "config"
                raise ModelError(
                    f"The family {self.model_type!r} has {name}={value!r}; it has to be a function, as in "
                    f"{name}=lambda {given}: {value!r}."
                )
        for name in ("model_type", "language_model", "audio_tower", "projector", "audio_token", "head"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ModelError(f"The family {self.model_type!r} has {name}={value!r}; it has to be a name in quotes.")
        if isinstance(self.lora_layers, str):
            raise ModelError(
                f"The family {self.model_type!r} has lora_layers={self.lora_layers!r}; it has to be a tuple of names, "
                f"as in lora_layers=({self.lora_layers!r},)."
            )

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """Find the submodule at a dotted path.

        Raises:
            ModelError: the model has no such submodule.
        """
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise ModelError(
                f"The family {self.model_type!r} expects a submodule {path!r}, which this {type(model).__name__} "
                "lacks. Check the checkpoint's class, or register a family with the right paths."
                + did_you_mean(path, (name for name, _ in model.named_modules()))
            ) from error

    def sampling_rate(self, processor: Any) -> int:
        """Read the rate in Hz at which the processor takes audio."""
        try:
            return getattr(processor, self.feature_extractor).sampling_rate
        except AttributeError as error:
            raise ModelError(
                f"The family {self.model_type!r} has feature_extractor={self.feature_extractor!r}, and the "
                f"{type(processor).__name__} has no such part with a sampling_rate. Name the attribute that has it."
            ) from error

    def lora_targets(
        self, model: nn.Module, names: Iterable[str] | None = None, chosen: Iterable[int] | None = None
    ) -> str:
        """Write a regular expression for linear layers inside the language model's decoder layers only.

        Args:
            model: the outer model.
            names: last parts of their paths, as `q_proj`; None for every linear layer of attention and MLP. Those of
                recurrent blocks cannot be chosen: see `lora_elsewhere`.
            chosen: numbers of the decoder's layers; None for all.

        Raises:
            ModelError: no linear layer of the decoder outside recurrent blocks has one of these names.
        """
        layers = f"{self.language_model}.layers"
        recurrent = self._recurrent_blocks(model)
        paths = [f"{layers}.{n}" for n, m in self.module(model, layers).named_modules() if isinstance(m, nn.Linear)]
        linear = {path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] not in recurrent}
        if names is not None and not (names := list(names)):
            raise ModelError("lora_layers is empty; name linear layers as q_proj, or leave it out for all of them.")
        names = names or self.lora_layers or linear
        unknown = sorted(set(names) - linear)
        if unknown:
            where = " outside its recurrent blocks" if recurrent else ""
            raise ModelError(
                f"The decoder of {type(model).__name__} has no linear layers called {', '.join(unknown)}{where}; it "
                f"has {', '.join(sorted(linear))}. Choose from these, or leave lora_layers out for all of them."
                + did_you_mean(unknown[0], linear)
            )
        return rf"{self._chosen_layers(chosen)}.*[.]({'|'.join(sorted(names))})"

    def lora_elsewhere(self, model: nn.Module, chosen: Iterable[int] | None = None) -> str:
        """Write a regular expression for where no adapter may go: outside the decoder's layers and in recurrent blocks.

        Layers that are not among the chosen ones are elsewhere, too.

        The fused kernels of recurrent blocks (state-space, linear attention) read the weights and skip an adapter.
        """
        blocks = [f"{path.replace('.', '[.]')}[.].*" for path in sorted(self._recurrent_blocks(model))]
        return "|".join([rf"(?!{self._chosen_layers(chosen)}).*", *blocks])

    def _chosen_layers(self, chosen: Iterable[int] | None) -> str:
        """Write how the paths of the decoder's layers begin, of all or of chosen numbers."""
        numbers = "" if chosen is None else f"({'|'.join(map(str, chosen))})[.]"
        return rf"{self.language_model.replace('.', '[.]')}[.]layers[.]{numbers}"

    def _recurrent_blocks(self, model: nn.Module) -> set[str]:
        """Find the paths of the decoder's recurrent blocks: each of them has a short convolution."""
        layers = f"{self.language_model}.layers"
        return {
            f"{layers}.{path}"
            for path, block in self.module(model, layers).named_modules()
            if any(isinstance(child, nn.Conv1d) for child in block.children())
        }

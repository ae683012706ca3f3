"""What differs between the speech-aware model classes of transformers: a few fields each.

Nothing else in the library may ask for a model class. A family is looked up by `config.model_type`; to add one, call
`register(Family(...))` before loading the model (docs/adding_a_family.md).
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from torch import nn
from transformers import AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from leaf.errors import ModelError

Message = Mapping[str, Any]
_RECURRENT_BLOCKS = {"mamba", "linear_attn", "mixer"}


def encode_text(processor: Any, texts: Sequence[str], waves: Sequence[np.ndarray], rate: int) -> Mapping[str, Any]:
    """Run a processor that takes rendered texts with one audio placeholder each, and waveforms (float32, mono)."""
    return processor(
        text=list(texts),
        audio=list(waves),
        text_kwargs={"padding": True},  # of the text alone: features keep the encoder's own window
        audio_kwargs={"sampling_rate": rate},
        return_tensors="pt",
    )


def encode_conversation(
    processor: Any, conversations: Sequence[Sequence[Message]], waves: Sequence[np.ndarray], rate: int
) -> Mapping[str, Any]:
    """Run a processor that takes whole conversations with the audio inside (mistral-common's chat template)."""
    filled = []
    for conversation, wave in zip(conversations, waves, strict=True):
        sound = io.BytesIO()
        soundfile.write(sound, wave, rate, format="WAV", subtype="FLOAT")  # float32 in, the same float32 out
        audio = {"type": "audio", "base64": base64.b64encode(sound.getvalue()).decode("ascii")}
        filled.append([{**message, "content": _put(message["content"], audio)} for message in conversation])
    return processor.apply_chat_template(filled, processor_kwargs={"text_kwargs": {"padding": True}})


def _put(content: Any, audio: Mapping[str, Any]) -> Any:
    """Return a message's content with its audio parts replaced."""
    return content if isinstance(content, str) else [audio if part.get("type") == "audio" else part for part in content]


@dataclass(frozen=True)
class Family:
    """Describe one model class.

    Attributes:
        model_type: `config.model_type` of the checkpoint.
        language_model: path from the outer model to the decoder stack that takes `inputs_embeds`.
        audio_tower, projector: paths to the audio encoder and to the projector into the embedding space.
        audio_token: placeholder token; once in a rendered prompt, once per audio embedding in the processor's ids.
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
        adapter: sub-folder of the checkpoint ("" for its root) with a speech LoRA of the model's own; it is merged into
            the weights on loading, so that the reference is the model as published. None where there is none.
        logits_scale: what the head's output has to be divided by (Granite), read from the configuration.
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
    embeddings_at: tuple[str, str | None] | None = None
    auto_model: Any = AutoModelForMultimodalLM
    feature_extractor: str = "feature_extractor"
    structured: bool = True
    encode: Callable[[Any, Any, Sequence[np.ndarray], int], Mapping[str, Any]] = encode_text
    adapter: str | None = None
    logits_scale: Callable[[PreTrainedConfig], float] = lambda config: 1.0
    note: str = ""

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """Return the submodule at a dotted path; a missing one is a ModelError."""
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise ModelError(
                f"The family {self.model_type!r} expects a submodule {path!r}, which this {type(model).__name__} "
                "lacks. Check the checkpoint's class, or register a family with the right paths."
            ) from error

    def lora_targets(self, model: nn.Module, names: Iterable[str] | None = None) -> str:
        """Return a regular expression for linear layers inside the language model's decoder layers only.

        Args:
            model: the outer model.
            names: last parts of their paths, as `q_proj`; None for every linear layer of attention and MLP. Those
                inside recurrent blocks are not taken by default: their fused kernels read weights past the adapter.

        Raises:
            ModelError: a name that no linear layer of the decoder has.
        """
        layers = f"{self.language_model}.layers"
        found = [n for n, m in self.module(model, layers).named_modules() if isinstance(m, nn.Linear)]
        linear = {name.rpartition(".")[2] for name in found}
        if names is None:
            names = {name.rpartition(".")[2] for name in found if not set(name.split(".")) & _RECURRENT_BLOCKS}
        unknown = sorted(set(names) - linear)
        if unknown:
            raise ModelError(
                f"The decoder of {type(model).__name__} has no linear layers called {', '.join(unknown)}; it has "
                f"{', '.join(sorted(linear))}. Choose from these, or leave lora_layers out for all of them."
            )
        return rf"{layers.replace('.', '[.]')}[.].*[.]({'|'.join(sorted(names))})"


_FAMILIES: dict[str, Family] = {}
_REFUSED: dict[str, str] = {}


def register(family: Family) -> Family:
    """Make a family known; a second registration under the same model type replaces the first."""
    _FAMILIES[family.model_type] = family
    return family


def refuse(model_type: str, reason: str) -> None:
    """Record why a model type is not supported, for the error a user of it gets."""
    _REFUSED[model_type] = reason


def families() -> list[str]:
    """Return the known model types."""
    return sorted(_FAMILIES)


def family(model_type: str) -> Family:
    """Return a known family by its model type."""
    return _FAMILIES[model_type]


def refused() -> dict[str, str]:
    """Return the model types that are known and not supported, with the reason."""
    return dict(_REFUSED)


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a configuration, or raise ModelError naming the known ones."""
    if config.model_type in _FAMILIES:
        return _FAMILIES[config.model_type]
    if config.model_type in _REFUSED:
        raise ModelError(f"The model type {config.model_type!r} is not supported: {_REFUSED[config.model_type]}")
    raise ModelError(
        f"The model type {config.model_type!r} is not a speech family this library knows; known are "
        f"{', '.join(families())}. Register yours with leaf.speech.families.register(Family(...))."
    )


def _whisper_window(processor: Any) -> float:
    """Return the window of a Whisper feature extractor, which cuts what is longer."""
    return float(processor.feature_extractor.chunk_length)


def _unlimited(processor: Any) -> float:
    return float("inf")


register(
    Family(
        model_type="audioflamingo3",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<sound>",
        max_seconds=lambda processor: float(processor.max_audio_len),
        audio_limit="600 s",
        auto_model=AutoModelForSeq2SeqLM,
    )
)
register(
    Family(
        model_type="glmasr",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<|pad|>",
        max_seconds=lambda processor: float(processor.max_audio_len),
        audio_limit="655 s",
    )
)
register(
    Family(
        model_type="qwen2_audio",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<|AUDIO|>",
        max_seconds=_whisper_window,
        audio_limit="30 s",
    )
)
register(
    Family(
        model_type="voxtral",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="[AUDIO]",
        max_seconds=_unlimited,
        audio_limit="any length, in windows of 30 s",
        encode=encode_conversation,
    )
)
for _model_type in ("granite_speech", "granite_speech_plus"):
    register(
        Family(
            model_type=_model_type,
            language_model="model.language_model",
            audio_tower="model.encoder",
            projector="model.projector",
            audio_token="<|audio|>",
            max_seconds=_unlimited,
            audio_limit="any length",
            feature_extractor="audio_processor",
            structured=False,
            adapter="",
            # transformers 5.23 leaves this division out of the speech classes; the text class has it.
            logits_scale=lambda config: float(config.text_config.logits_scaling),
        )
    )
register(
    Family(
        model_type="phi4_multimodal",
        language_model="model",
        audio_tower="model.embed_tokens_extend.audio_embed.encoder",
        projector="model.embed_tokens_extend.audio_embed.up_proj_for_speech",
        audio_token="<|audio|>",
        max_seconds=_unlimited,
        audio_limit="any length",
        embeddings_at=("model.layers.0", None),
        feature_extractor="audio_processor",
        structured=False,
        adapter="speech-lora",
    )
)

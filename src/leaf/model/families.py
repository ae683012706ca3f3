"""What differs between the speech-aware model classes of transformers: a few fields each.

Nothing else in the library may ask for a model class. A family is looked up by `config.model_type`; to add one, call
`register(Family(...))` before loading the model (docs/adding_a_family.md).
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
from torch import nn
from transformers import (
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

from leaf.errors import ModelError

Message = Mapping[str, Any]


def encode_text(processor: Any, texts: Sequence[str], waves: Sequence[np.ndarray], rate: int) -> Mapping[str, Any]:
    """Run a processor that takes rendered texts with one audio placeholder each, and waveforms (float32, mono)."""
    return processor(
        text=list(texts),
        audio=list(waves),
        # Padding is of the text alone: features keep the encoder's own window. Templates write their own first token.
        text_kwargs={"padding": True, "add_special_tokens": False},
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
        logits_cap: soft cap c of the logits, c·tanh(logits / c) (Gemma), read from the configuration; None for none.
        per_token: argument of the decoder stack that takes a further input per token, (rows, tokens, layers, width),
            and the decoder's method that makes it from token ids (Gemma 3n); None for none.
        alone: True where the embeddings of a prompt depend on its batch mates: prompts are then embedded one by one.
        forward: further arguments of the outer forward.
        lora_layers: linear layers that get an adapter by default; None for all of attention and MLP.
        extra: the optional extra of this package that its processor needs (`pip install leaf-speech[EXTRA]`); None for
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
            names: last parts of their paths, as `q_proj`; None for every linear layer of attention and MLP. Those of
                recurrent blocks are no choice: see `lora_elsewhere`.

        Raises:
            ModelError: a name that no linear layer of the decoder has, recurrent blocks aside.
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
            )
        return rf"{layers.replace('.', '[.]')}[.].*[.]({'|'.join(sorted(names))})"

    def lora_elsewhere(self, model: nn.Module) -> str:
        """Return a regular expression for where no adapter may go: outside the decoder's layers, in recurrent blocks.

        The fused kernels of recurrent blocks (state-space, linear attention) read weights past an adapter.
        """
        blocks = [f"{path.replace('.', '[.]')}[.].*" for path in sorted(self._recurrent_blocks(model))]
        return "|".join([rf"(?!{self.language_model.replace('.', '[.]')}[.]layers[.]).*", *blocks])

    def _recurrent_blocks(self, model: nn.Module) -> set[str]:
        """Return the paths of the decoder's recurrent blocks, told by the short convolution that each of them holds."""
        layers = f"{self.language_model}.layers"
        return {
            f"{layers}.{path}"
            for path, block in self.module(model, layers).named_modules()
            if any(isinstance(child, nn.Conv1d) for child in block.children())
        }


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
        raise ModelError(f"The model type {config.model_type!r} is not supported. {_REFUSED[config.model_type]}")
    raise ModelError(
        f"The model type {config.model_type!r} is not a speech family this library knows; known are "
        f"{', '.join(families())}. Register yours with leaf.model.families.register(Family(...))."
    )


def _whisper_window(processor: Any) -> float:
    """Return the window of a Whisper feature extractor, which cuts what is longer."""
    return float(processor.feature_extractor.chunk_length)


def _whole_windows(processor: Any) -> float:
    """Return the longest whole number of encoder windows within the processor's limit."""
    window = processor.feature_extractor.chunk_length
    return float(processor.max_audio_len // window * window)


def _unlimited(processor: Any) -> float:
    return float("inf")


register(
    Family(
        model_type="audioflamingo3",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<sound>",
        max_seconds=_whole_windows,
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
        max_seconds=_whole_windows,
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
        audio_limit="any length",
        encode=encode_conversation,
        extra="voxtral",
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
            extra="granite",
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
        alone=True,  # its encoder adds the padding mask to the scores as 0 and 1 (transformers 5.23)
    )
)
register(
    Family(
        model_type="musicflamingo",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<sound>",
        max_seconds=_whole_windows,
        audio_limit="1200 s",
        auto_model=AutoModelForSeq2SeqLM,
    )
)
# The configuration of an Omni checkpoint says the first, its thinker, which is what is loaded, the second.
for _model_type in ("qwen2_5_omni", "qwen2_5_omni_thinker"):
    register(
        Family(
            model_type=_model_type,
            language_model="model.language_model",
            audio_tower="model.audio_tower",
            projector="model.audio_tower.proj",
            audio_token="<|AUDIO|>",
            max_seconds=_whisper_window,
            audio_limit="300 s",
            auto_model=Qwen2_5OmniThinkerForConditionalGeneration,
            note="Qwen2.5-Omni: the thinker is trained; the talker is not loaded.",
        )
    )
for _model_type in ("qwen3_omni_moe", "qwen3_omni_moe_thinker"):
    register(
        Family(
            model_type=_model_type,
            language_model="model.language_model",
            audio_tower="model.audio_tower",
            projector="model.audio_tower.proj2",
            audio_token="<|audio_pad|>",
            max_seconds=_unlimited,
            audio_limit="any length",
            auto_model=Qwen3OmniMoeThinkerForConditionalGeneration,
            alone=True,
            note="Qwen3-Omni: the thinker is trained, adapters on attention only; its experts are no linear layers.",
        )
    )
register(
    Family(
        model_type="vibevoice_asr",
        language_model="model.language_model",
        audio_tower="model.acoustic_tokenizer_encoder",
        projector="model.multi_modal_projector",
        audio_token="<|box_start|>",
        max_seconds=_unlimited,
        audio_limit="any length",
        forward={"sample": False},  # its encoder adds noise unless told not to
    )
)
register(
    Family(
        model_type="nemotron_h_omni",
        language_model="language_model.model",
        head="language_model.lm_head",
        audio_tower="audio_tower",
        projector="embed_audio",
        audio_token="<so_embedding>",
        max_seconds=_unlimited,
        audio_limit="any length",
    )
)
register(
    Family(
        model_type="gemma3n",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.embed_audio",
        audio_token="<audio_soft_token>",
        max_seconds=lambda processor: min(
            480_000 / processor.feature_extractor.sampling_rate, processor.audio_seq_length * 0.16
        ),
        audio_limit="30 s",
        logits_cap=lambda config: config.get_text_config().final_logit_softcapping,
        per_token=("per_layer_inputs", "get_per_layer_inputs"),
        alone=True,
        # AltUp's own linear layers are read past an adapter in train mode.
        lora_layers=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
refuse("granite_speech5_ctc", "It is a CTC recogniser without a language model, so there is no text policy to train.")
refuse("voxtral_realtime", "It adds audio to every generated token as it streams, so a prompt cannot be encoded once.")

"""The speech model families that leaf knows, by the `model_type` of their configuration.

To add one, call `register(Family(...))` before loading the model (docs/adding_a_family.md).
"""

from typing import Any

from transformers import (
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

from leaf.errors import ModelError, did_you_mean
from leaf.model.family import Family, encode_conversation

# By `config.model_type`: the families that are known, and those that cannot be supported, with the reason.
_FAMILIES: dict[str, Family] = {}
_REFUSED: dict[str, str] = {}


def register(family: Family) -> Family:
    """Make a family known; one with the same model type is replaced."""
    _FAMILIES[family.model_type] = family
    return family


def refuse(model_type: str, reason: str) -> None:
    """Record why a model type is not supported, for the error that its users get."""
    _REFUSED[model_type] = reason


def families() -> list[str]:
    """List the known model types."""
    return sorted(_FAMILIES)


def family(model_type: str) -> Family:
    """Look up a known family by its model type."""
    return _FAMILIES[model_type]


def refused() -> dict[str, str]:
    """List the model types that are known not to be supported, with the reason."""
    return dict(_REFUSED)


def family_of(config: PreTrainedConfig) -> Family:
    """Look up the family of a configuration.

    Raises:
        ModelError: there is none, or the model type is not supported.
    """
    if config.model_type in _FAMILIES:
        return _FAMILIES[config.model_type]
    if config.model_type in _REFUSED:
        raise ModelError(f"The model type {config.model_type!r} is not supported. {_REFUSED[config.model_type]}")
    raise ModelError(
        f"The model type {config.model_type!r} is not a speech family that leaf knows; known are "
        f"{', '.join(families())}. Register yours with leaf.model.families.register(Family(...))."
        + did_you_mean(config.model_type, families())
    )


def _whisper_window(processor: Any) -> float:
    """Read the window of a Whisper feature extractor, which cuts longer audio."""
    return float(processor.feature_extractor.chunk_length)


def _whole_windows(processor: Any) -> float:
    """Compute the longest whole number of encoder windows within the processor's limit."""
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
            alone=True,  # its extractor pads waveforms with silence, and its encoder takes no mask (transformers 5.23)
        )
    )
register(
    Family(
        model_type="phi4_multimodal",
        language_model="model",
        audio_tower="model.embed_tokens_extend.audio_embed.encoder",
        projector="model.embed_tokens_extend.audio_embed.up_proj_for_speech",
        audio_output="model.embed_tokens_extend.audio_embed.down_proj_for_speech",
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
# An Omni checkpoint's configuration has the first name. The second is that of its thinker, the part that is loaded.
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
        model_type="qwen3_asr",
        language_model="model.language_model",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<|audio_pad|>",
        max_seconds=_unlimited,
        audio_limit="any length",
        alone=True,  # its convolutions see the padding behind the last frame (transformers 5.23)
        note="Qwen3-ASR answers 'language NAME<asr_text>' and the text; references and rewards have to match that.",
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
        # AltUp's own linear layers are left out: in train mode their weights are read past an adapter.
        lora_layers=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
refuse("granite_speech5_ctc", "It is a CTC recogniser without a language model, so there is no text policy to train.")
refuse("voxtral_realtime", "It adds audio to every generated token as it streams, so a prompt cannot be encoded once.")
_UNTRIED = (
    "leaf has no tested description of it: {} Write one with leaf.model.families.register(Family(...)); the start-up "
    "checks say whether it is right."
)
refuse("gemma4", _UNTRIED.format("its layers differ in the width of their heads, and some read the cache of others."))
refuse("gemma4_unified", _UNTRIED.format("it has no audio tower; the projector takes the waveform itself."))
refuse("fun_asr_nano", _UNTRIED.format("its projector has attention layers of its own, behind a SenseVoice encoder."))
refuse("moss_transcribe_diarize", _UNTRIED.format("its processor writes the seconds as text between audio frames."))

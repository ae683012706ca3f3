"""Where vLLM keeps what leaf trains: for every family, vLLM's own speech class and the plain class of its decoder.

vLLM checks only the last part of an adapter's names and drops every tensor whose whole path it does not have, without a
word. An adapter as transformers 5 and leaf save it is at `model.language_model.layers`, and vLLM's speech classes hold
the decoder at `language_model.model.layers`: such a server answers as the bare model. docs/serving.md has the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from transformers import Phi3Config, PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from leaf.errors import ModelError
from leaf.model.family import Family

VERSION = "0.32.0"  # of vLLM, whose classes were read and run for what is below
# What a server loads an adapter onto: the plain class of the decoder, or vLLM's own speech class.
Onto = Literal["language_model", "speech"]
PLAIN = "model"  # where a plain class holds its decoder


def _as(kind: Any) -> Callable[[Any], PreTrainedConfig]:
    """Make a function that reads a decoder's configuration as that of a plain class with the same layers."""

    def convert(config: Any) -> PreTrainedConfig:
        known = {*kind().to_dict(), *kind.attribute_map}
        values: dict[str, Any] = {
            key: value for key, value in config.to_dict().items() if key in known and key != "model_type"
        }
        # Audio has the same position on all axes of a multimodal rotary embedding, and then it is the plain one.
        rope = {key: value for key, value in values["rope_parameters"].items() if not key.startswith("mrope_")}
        return kind(**values | {"rope_parameters": rope})

    return convert


def _same(config: Any) -> PreTrainedConfig:
    return config


@dataclass(frozen=True)
class Served:
    """How vLLM serves a family.

    Attributes:
        speech: where vLLM's own speech class holds the decoder; None where it takes no adapter of leaf.
        why: the reason, a sentence, where `speech` is None.
        plain: reads the decoder's configuration as that of a plain class; None where prompt embeddings do not suffice.
        why_not_plain: the reason, a sentence, where `plain` is None.
        as_saved: whether vLLM has the names that leaf saves, too.
        note: what a user of vLLM's own class should know; "" for nothing.
    """

    speech: str | None = None
    why: str = "leaf does not know where vLLM's class for it holds the decoder."
    plain: Callable[[Any], PreTrainedConfig] | None = _same
    why_not_plain: str = ""
    as_saved: bool = False
    note: str = ""


_DECODER = "language_model.model"  # of every speech class of vLLM that is built around one of its text classes
_WHOLE = "vLLM serves the whole Omni checkpoint as published, not the thinker alone, so a merged one is not served."
# The one table of names, by the family's model type.
_SERVED: dict[str, Served] = {
    "audioflamingo3": Served(
        _DECODER,
        note="vLLM's class hears audio in windows of 30 s and does not load a checkpoint with another window, such as "
        "leaf's demo model. Serve one like that as embedded prompts: export it with --language-model.",
    ),
    "glmasr": Served(_DECODER),
    "qwen2_audio": Served(why="vLLM serves Qwen2-Audio without LoRA."),
    "voxtral": Served(_DECODER, note="vLLM reads Mistral's format of the checkpoint (--load-format mistral)."),
    "granite_speech": Served(_DECODER),
    "granite_speech_plus": Served(_DECODER),
    "phi4_multimodal": Served(
        why="vLLM serves the earlier layout of Phi-4-multimodal only, where its speech LoRA is an adapter itself.",
        plain=_as(Phi3Config),
    ),
    "musicflamingo": Served(why="vLLM serves MusicFlamingo no longer since 0.24."),
    "qwen2_5_omni": Served(_DECODER, plain=_as(Qwen2Config), note=_WHOLE),
    "qwen2_5_omni_thinker": Served(_DECODER, plain=_as(Qwen2Config), note=_WHOLE),
    "qwen3_omni_moe": Served(_DECODER, plain=_as(Qwen3MoeConfig), note=_WHOLE),
    "qwen3_omni_moe_thinker": Served(_DECODER, plain=_as(Qwen3MoeConfig), note=_WHOLE),
    "qwen3_asr": Served(_DECODER, as_saved=True),
    "vibevoice_asr": Served(why="vLLM runs VibeVoice-ASR through transformers, and adapters were not tried there."),
    "nemotron_h_omni": Served(_DECODER, as_saved=True),
    "gemma3n": Served(
        why="vLLM serves Gemma 3n without LoRA.",
        plain=None,
        why_not_plain="The layers of Gemma 3n take a further input per token, which prompt embeddings do not bring.",
    ),
}


def served(family: Family) -> Served:
    """Look up how vLLM serves a family; of one that a user registered, only its decoder's own plain class is known."""
    return _SERVED.get(family.model_type, Served())


def how_to_serve(family: Family, *, projector: bool) -> str:
    """Say for a model card how an adapter as leaf saves it is served with vLLM, and what would go wrong.

    Args:
        family: of the model that the adapter was trained on.
        projector: whether a trained projector goes with it.
    """
    how = served(family)
    lines = ["`leaf export ADAPTER --for merged --to FOLDER` writes one checkpoint with everything in it."]
    if how.speech and not projector:
        lines = [
            "vLLM leaves out adapter tensors whose names it does not have, without a word. "
            + (
                "It has those in this folder; an export is compared with the model's layers all the same:"
                if how.as_saved
                else "The names in this folder are such names: served as it is, this adapter does nothing. Export it "
                "first:"
            ),
            "",
            "```bash",
            "leaf export ADAPTER --for vllm --to EXPORTED",
            "vllm serve BASE_MODEL --enable-lora --max-lora-rank RANK --lora-modules adapter=EXPORTED",
            "```",
            "",
            *([how.note] if how.note else []),
            "Or",
            lines[0],
        ]
    elif how.speech:
        lines.append("With vLLM serve that checkpoint: a server of the base model would have another projector.")
    else:
        lines.insert(0, f"{how.why} An adapter cannot be served there, so merge it first.")
    if how.speech and family.adapter is not None:
        lines.append("A checkpoint with a speech LoRA of its own is served merged, since a server applies one adapter.")
    return "\n".join(lines)


def plain_config(family: Family, config: Any) -> Any:
    """Read a checkpoint's configuration as that of the plain class of its decoder.

    Raises:
        ModelError: vLLM cannot serve the decoder alone with prompt embeddings.
    """
    how = served(family)
    if how.plain is None:
        raise ModelError(
            f"The language model of the family {family.model_type!r} cannot be served alone. {how.why_not_plain} "
            "Merge the adapter with `--for merged`, and sample with leaf itself."
        )
    return how.plain(config.get_text_config(decoder=True))


def mount(family: Family, onto: Onto) -> str:
    """Name the path of the decoder in the class that a server loads.

    Raises:
        ModelError: vLLM's speech class takes no adapter of this family.
    """
    if onto == "language_model":
        return PLAIN
    how = served(family)
    if how.speech is None:
        alone = "Export the decoder for prompt embeddings with `--language-model`, or merge" if how.plain else "Merge"
        raise ModelError(
            f"vLLM takes no adapter for the family {family.model_type!r}: {how.why} {alone} the adapter into the "
            "checkpoint with `--for merged`."
        )
    return how.speech


def renamed(name: str, family: Family, place: str) -> str:
    """Rename the path of a layer from where the family has its decoder to where a server has it.

    Raises:
        ModelError: the layer is not in the decoder.
    """
    inside = name.removeprefix(f"{family.language_model}.")
    if inside == name:
        raise ModelError(
            f"The adapter is on {name}, outside {family.language_model}, and a server of the decoder has no such "
            "layer. Give an adapter that leaf trained."
        )
    return f"{place}.{inside}"

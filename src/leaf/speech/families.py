"""What differs between the speech-aware model classes of transformers: a few fields each.

Nothing else in the library may ask for a model class. A family is looked up by `config.model_type`; to add one, call
`register(Family(...))` before loading the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from leaf.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Describe one model class.

    Attributes:
        model_type: `config.model_type` of the checkpoint.
        language_model: path from the outer model to the decoder stack that takes `inputs_embeds`.
        head: path to the output projection from hidden states to vocabulary logits.
        audio_tower, projector: paths to the audio encoder and to the projector into the embedding space.
        audio_token: placeholder token, repeated once per audio embedding in the prompt.
        max_seconds: longest audio the processor takes without cutting, in seconds, read from the processor.
        auto_model: the auto class of transformers that loads the checkpoint with its head.
        logits_scale: what the head's output has to be divided by (Granite), read from the configuration.
    """

    model_type: str
    language_model: str
    head: str
    audio_tower: str
    projector: str
    audio_token: str
    max_seconds: Callable[..., float]
    auto_model: Any = AutoModelForMultimodalLM
    logits_scale: Callable[[PreTrainedConfig], float] = lambda config: 1.0

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """Return the submodule at a dotted path; a missing one is a ModelError."""
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise ModelError(
                f"The family {self.model_type!r} expects a submodule {path!r}, which this {type(model).__name__} "
                "lacks. Check the checkpoint's class, or register a family with the right paths."
            ) from error

    def lora_targets(self, names: tuple[str, ...]) -> str:
        """Return a regular expression that matches linear layers of these names inside the language model only."""
        return rf"{self.language_model.replace('.', '[.]')}[.].*[.]({'|'.join(names)})"


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known; a second registration under the same model type replaces the first."""
    _FAMILIES[family.model_type] = family
    return family


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a configuration, or raise ModelError naming the known ones."""
    if config.model_type not in _FAMILIES:
        raise ModelError(
            f"The model type {config.model_type!r} is not a speech family this library knows; known are "
            f"{', '.join(sorted(_FAMILIES))}. Register yours with leaf.speech.families.register(Family(...))."
        )
    return _FAMILIES[config.model_type]


register(
    Family(
        model_type="audioflamingo3",
        language_model="model.language_model",
        head="lm_head",
        audio_tower="model.audio_tower",
        projector="model.multi_modal_projector",
        audio_token="<sound>",
        max_seconds=lambda processor: float(processor.max_audio_len),
        auto_model=AutoModelForSeq2SeqLM,
    )
)

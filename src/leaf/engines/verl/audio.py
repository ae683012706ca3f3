"""Let verl 0.9.1 take models that hear and do not see, which it would otherwise load without their audio.

verl has the way for audio, from the message to the engine, and three doors before it: its list of processors has those
with images alone (any other one becomes None, with a warning), its prompts are rendered by a processor only where that
has an image processor, and a checkpoint whose class it does not know is loaded without its output head. Nothing is
changed for models that verl itself knows.
"""

import sys
import warnings
from functools import wraps
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from verl.utils.tokenizer import continuous_token_wiring, tokenizer  # pyright: ignore[reportMissingImports]


def open_doors() -> None:
    """Make verl take speech models in this process; a second call changes nothing."""
    of_verl = tokenizer.hf_processor
    if hasattr(of_verl, "__wrapped__"):
        return

    @wraps(of_verl)
    def hf_processor(name_or_path: str, **options: Any) -> Any:
        return speech_processor(name_or_path, **options) or of_verl(name_or_path, **options)

    for name, module in list(sys.modules.items()):  # modules hold it under its own name; later ones find ours
        if name.startswith("verl.") and vars(module).get("hf_processor") is of_verl:
            setattr(module, "hf_processor", hf_processor)  # noqa: B010

    has_images = continuous_token_wiring._is_multimodal_processor
    continuous_token_wiring._is_multimodal_processor = lambda one: hears(one) or has_images(one)


def hears(processor: Any) -> bool:
    """Tell whether a processor takes audio and no images."""
    return (
        getattr(processor, "feature_extractor", None) is not None
        and getattr(processor, "image_processor", None) is None
    )


def speech_processor(name_or_path: str, **options: Any) -> Any:
    """Load the processor of a speech model, and register the model's class for verl's actor; None of other models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = AutoConfig.from_pretrained(name_or_path, **options)
            processor = AutoProcessor.from_pretrained(name_or_path, **options)
        except (OSError, ValueError):  # what is wrong with it, verl says itself
            return None
    if not hears(processor):
        return None
    kind = type(config)
    if kind not in AutoModelForImageTextToText._model_mapping and kind in AutoModelForMultimodalLM._model_mapping:
        # verl asks this mapping alone which checkpoints have a head besides those of text.
        AutoModelForImageTextToText.register(kind, AutoModelForMultimodalLM._model_mapping[kind])
    processor.config = config
    return processor

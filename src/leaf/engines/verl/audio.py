"""Let verl 0.9.1 take models that hear and do not see, which it would load without their audio and sample from wrongly.

verl has the way for audio, from the message to the engine, and doors before it that open for images alone:

- Its list of processors has those with images; any other one becomes None, with a warning.
- A checkpoint of a class that it does not know is loaded without its output head.
- A prompt is rendered by the processor only where that has an image processor.
- vLLM repeats a placeholder as often as the audio is long, so verl sends each one once, for images alone. An audio
  placeholder that is repeated already would be repeated again: vLLM would answer another prompt than the one trained.
- The policy may sample a placeholder, to which no audio belongs; verl forbids that for images alone.

Nothing is changed for models that verl itself knows.
"""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from verl.utils.tokenizer import continuous_token_wiring, tokenizer  # pyright: ignore[reportMissingImports]
from verl.workers.rollout import utils as rollout  # pyright: ignore[reportMissingImports]


def open_doors() -> None:
    """Make verl take speech models in this process; a second call changes nothing."""
    _replace(tokenizer, "hf_processor", _processors)
    _replace(continuous_token_wiring, "_is_multimodal_processor", _rendered_by_processor)
    _replace(rollout, "qwen2_5_vl_dedup_image_tokens", _placeholders_once)
    _replace(rollout, "get_vision_placeholder_token_ids", _never_sampled)


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
    if not hasattr(config, "tie_word_embeddings"):
        # verl asks the outer configuration, and some of speech models have it in that of the language model alone.
        tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
        setattr(kind, "tie_word_embeddings", tied)  # noqa: B010
    processor.config = config
    return processor


def _replace(module: Any, name: str, ours: Callable[[Any], Callable[..., Any]]) -> None:
    """Put `ours(function)` in the place of a function of verl, wherever a module holds it already."""
    function = getattr(module, name)
    if hasattr(function, "__wrapped__"):
        return
    wrapped = wraps(function)(ours(function))
    for holder, its in list(sys.modules.items()):
        if holder.startswith("verl.") and vars(its).get(name) is function:
            setattr(its, name, wrapped)


def _processors(of_verl: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name_or_path, **options: speech_processor(name_or_path, **options) or of_verl(name_or_path, **options)


def _rendered_by_processor(of_verl: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda processor: hears(processor) or of_verl(processor)


def _placeholders_once(of_verl: Callable[..., list[int]]) -> Callable[..., list[int]]:
    def collapsed(prompt_ids: list[int], processor: Any) -> list[int]:
        if not hears(processor):
            return of_verl(prompt_ids, processor)
        audio = tokenizer.get_processor_token_id(processor, "audio")
        return prompt_ids[:1] + [after for before, after in pairwise(prompt_ids) if not before == after == audio]

    return collapsed


def _never_sampled(of_verl: Callable[[Any], list[int]]) -> Callable[[Any], list[int]]:
    def banned(processor: Any) -> list[int]:
        audio = tokenizer.get_processor_token_id(processor, "audio") if hears(processor) else None
        return of_verl(processor) + ([] if audio is None else [audio])

    return banned

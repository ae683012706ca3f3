"""Count the tokens of prompts, audio included, from the seconds of their audio: no recording is decoded."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from leaf.data.recordings import with_audio
from leaf.data.rows import Example
from leaf.model.family import Family, encode_text
from leaf.model.prompts import check_placeholders, encode, render

_STEP = 0.1  # seconds: audio tokens are counted once for all recordings whose lengths round up to the same
_CLOSE = 8  # tokens below a limit from which a prompt is counted exactly


class PromptLengths:
    """Count prompts for one model. A prompt has the tokens of its text, and those of audio as long as its own.

    Args:
        family, processor: of the model.
    """

    def __init__(self, family: Family, processor: Any):
        self.family, self.processor = family, processor
        self.rate = family.sampling_rate(processor)
        self.longest = family.max_seconds(processor)
        self._of_audio = lru_cache(maxsize=None)(self._audio_tokens)

    def count(self, example: Example, seconds: float, limit: int | None = None) -> int:
        """Count the tokens of a row's prompt; near the limit exactly, below it within those of 0.1 s of audio.

        Raises:
            DataError, ModelError: it is no prompt, or has not exactly one audio placeholder.
        """
        if self.family.encode is not encode_text:
            return self._exactly(example, seconds)
        text = render(self.family, self.processor, example["prompt"])
        check_placeholders(self.family, example, text.count(self.family.audio_token))
        steps = math.ceil(seconds / _STEP - 1e-6)
        counted = self._text_tokens(text) + self._of_audio(min(steps * _STEP, self.longest))
        return counted if limit is None or counted < limit - _CLOSE else self._exactly(example, seconds)

    def _audio_tokens(self, seconds: float) -> int:
        prompt = self.family.audio_token
        return self._exactly({"prompt": prompt}, seconds) - self._text_tokens(prompt)

    def _text_tokens(self, text: str) -> int:
        return len(self.processor.tokenizer(text)["input_ids"])

    def _exactly(self, example: Example, seconds: float) -> int:
        """Let the processor make the prompt with a sound of this length in place of the recording."""
        sound = np.full(max(1, round(seconds * self.rate)), 0.1, np.float32)
        row = with_audio(example, {"array": sound, "sampling_rate": self.rate})
        return int(encode(self.family, self.processor, [row], None)["attention_mask"].sum())

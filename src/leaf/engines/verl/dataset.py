"""A data set for verl that hears: the audio of `leaf data export`, decoded for processors and inference servers.

verl's own data set hands the encoded bytes on, and neither transformers' processors nor vLLM take these.

    data.custom_cls.path=pkg://leaf.engines.verl.dataset data.custom_cls.name=LeafDataset
"""

from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset  # pyright: ignore[reportMissingImports]

from leaf.data.audio import load_audio


class LeafDataset(RLHFDataset):
    """Read rows with audio as verl does, with waveforms (samples,) in the messages in place of encoded bytes."""

    def _build_messages(self, example: dict[str, Any], key: str) -> list[dict[str, Any]]:
        """Build the messages of a row, and decode their audio at the rate of the processor."""
        messages = super()._build_messages(example, key)
        for message in messages:
            parts = message["content"] if isinstance(message["content"], list) else []
            for part in parts:
                if part["type"] == "audio":
                    part["audio"] = load_audio(part["audio"], sampling_rate=self.sampling_rate)
        return messages

    @property
    def sampling_rate(self) -> int:
        """Tell the rate that the processor takes, in Hz."""
        extractor = getattr(self.processor, "feature_extractor", None)
        return int(getattr(extractor, "sampling_rate", 16000))

"""Speech-aware LLMs on transformers and peft: audio, families, policy, packing, sampling."""

"""Prompts of exactly so many tokens, with recorded speech and without."""

from typing import Any

from benchmarks.step.bench import RATE, Bench
from leaf.data import load
from leaf.data.audio import load_audio

SAMPLES_PER_TOKEN = 640  # 40 ms of audio become one position of the prompt
AUDIO_SHARE = 0.7  # of the prompt, up to LONGEST_AUDIO
LONGEST_AUDIO = 175  # tokens: 7 s, below the 8 s that the demo's encoder sees


def make_rows(bench: Bench, tokens: int) -> list[dict[str, Any]]:
    """Return N rows whose prompts have exactly `tokens` tokens: text first, audio cut to fill the rest."""
    data = load("asterisk_asr", "train").shuffle(seed=tokens)
    audio_tokens = min(LONGEST_AUDIO, int(AUDIO_SHARE * tokens))
    rows = []
    for number in range(bench.args.prompts):
        own = data.select(range(number * 200, number * 200 + 200))
        sentences = own["text"][:]
        text, rendered, used = _instruction(bench, sentences, tokens - audio_tokens)
        files = [name for parts in own["audio"][:12] for name in parts]
        wave = load_audio(files, sampling_rate=RATE)[: (tokens - used) * SAMPLES_PER_TOKEN]
        rows.append({"prompt": text, "rendered": rendered, "audio": {"array": wave, "sampling_rate": RATE}})
    return rows


def _instruction(bench: Bench, sentences: list[str], limit: int) -> tuple[str, str, int]:
    """Return an instruction with as many of the sentences as fit in `limit` tokens, rendered, and its tokens."""
    text = "Write down what the speaker says."
    best = _measured(bench, text)
    for count in range(1, len(sentences) + 1):
        longer = _measured(bench, "\n".join([text, "Messages heard before:", *sentences[:count]]))
        if longer[2] > limit:
            break
        best = longer
    return best


def _measured(bench: Bench, text: str) -> tuple[str, str, int]:
    """Return a text, rendered as a prompt, and the tokens of that without the audio's placeholder."""
    rendered = _render(bench.policy.processor, text)
    return text, rendered, len(bench.policy.tokenizer(rendered, add_special_tokens=False)["input_ids"]) - 1


def _render(processor: Any, text: str) -> str:
    content = [{"type": "audio", "audio": ""}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def text_prompt(bench: Bench, row: dict[str, Any], number: int, tokens: int) -> str:
    """Return a text of exactly `tokens` tokens, the instruction of the row followed by filler words."""
    lines = load("asterisk_asr", "train")["text"][number * 200 : number * 200 + 300]
    words = " ".join(lines).split()
    text = row["prompt"]

    def size(text: str) -> int:
        return len(bench.policy.tokenizer(text)["input_ids"])

    for word in words:
        if size(f"{text} {word}") <= tokens:
            text = f"{text} {word}"
    while size(text) < tokens:
        text += " and"
    if size(text) != tokens:
        raise AssertionError(f"The text prompt has {size(text)} tokens, not {tokens}.")
    return text

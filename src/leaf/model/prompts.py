"""Turn rows into the processor's tensors, and refuse what would lose audio.

A prompt is a plain instruction, in which {audio} may say where the audio goes, a string with the family's audio
placeholder in it, or messages with an audio part in their content. The audio is the row's `audio`, or else what the
audio part names (`audio`, `path`, `url`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from torch import Tensor

from leaf.data.recordings import hear, row_seconds
from leaf.data.rows import AUDIO_PLACE, AUDIO_TAG, Example, row_name
from leaf.errors import DataError, ModelError, shown
from leaf.model.family import Family, encode_text


def placeholder_id(family: Family, tokenizer: Any) -> int:
    """Look up the id of a family's placeholder.

    Raises:
        ModelError: the tokenizer does not know it, or has no padding token and so cannot put prompts in one batch.
    """
    found = tokenizer.convert_tokens_to_ids(family.audio_token)
    if found is None or found == tokenizer.unk_token_id:
        raise ModelError(
            f"The tokenizer does not know {family.audio_token}, the audio placeholder of the family "
            f"{family.model_type!r}. Give the checkpoint with its own tokenizer files, or correct audio_token."
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "The tokenizer has no padding token, so prompts cannot be put in one batch. Set pad_token in the "
            "checkpoint's tokenizer_config.json, for example to its eos_token."
        )
    return found


def conversation(family: Family, prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write a prompt as messages whose content is a list of parts; a plain instruction follows its audio.

    Unless it says where the audio goes.
    """
    if isinstance(prompt, str):
        prompt = prompt.replace(AUDIO_PLACE, family.audio_token)
        text = prompt if family.audio_token in prompt else family.audio_token + prompt
        return [{"role": "user", "content": _parts(text, family.audio_token)}]
    messages = []
    for message in _messages(prompt):
        content = message["content"]
        if not isinstance(content, str):
            content = [part if part.get("type") != "audio" else {"type": "audio", "audio": ""} for part in content]
        elif family.audio_token in content and family.structured:
            content = _parts(content, family.audio_token)
        messages.append({**message, "content": content})
    return messages


def _messages(prompt: Any) -> list[dict[str, Any]]:
    """Check a prompt's messages and leave out the keys that have no value.

    `datasets` gives all parts of a column the same keys, None where a part had none, and templates ask which exist.

    Raises:
        DataError, ModelError: the prompt is no list of messages.
    """
    if not isinstance(prompt, list | tuple):
        raise DataError(f"A prompt is {shown(prompt)}; give a string, or a list of messages.")
    if not prompt:
        raise DataError("A prompt is an empty list; give it at least one message.")
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ModelError(
                f"A prompt's message is {shown(message)}; give each a 'role' and a 'content', which is a string or a "
                "list of parts."
            )
        content = message["content"]
        if not isinstance(content, str | list | tuple) or not (isinstance(content, str) or all(map(_is_part, content))):
            raise DataError(
                f"A prompt's message holds {shown(content)}; its content is a string, or a list of parts such as "
                "{'type': 'text', 'text': ...} and {'type': 'audio'}."
            )
    if prompt[-1]["role"] == "assistant":
        raise DataError(
            "A prompt's last message is the assistant's, so the answer would be in the prompt. End the prompt with the "
            "user's message, and give the answer as the row's reference."
        )
    return [_present({**message, "content": _present_parts(message["content"])}) for message in prompt]


def _present_parts(content: Any) -> Any:
    return content if isinstance(content, str) else [_present(part) for part in content]


def _present(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and (part.get("type") == "audio" or isinstance(part.get("text"), str))


def _parts(text: str, placeholder: str) -> list[dict[str, str]]:
    """Cut a string at its placeholders into text and audio parts."""
    parts: list[dict[str, str]] = []
    for i, piece in enumerate(text.split(placeholder)):
        parts += [{"type": "audio", "audio": ""}] if i else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def render(family: Family, processor: Any, prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Render a prompt as model input text with one audio placeholder; a string that has one stays as it is.

    Raises:
        DataError, ModelError: it is no prompt, holds another model's audio tag, or there is no chat template.
    """
    refuse_foreign_tags(family, processor.tokenizer, prompt)
    if isinstance(prompt, str) and family.audio_token in prompt and AUDIO_PLACE not in prompt:
        return prompt
    messages = conversation(family, prompt)
    if not family.structured:
        messages = [{**message, "content": _flat(message["content"], family.audio_token)} for message in messages]
    # Some processors lose their template on loading (Phi-4-multimodal) and some checkpoints keep it with the tokenizer.
    template = processor.chat_template or processor.tokenizer.chat_template
    if template is None:
        raise ModelError(
            "Neither the processor nor its tokenizer has a chat template, so an instruction cannot be rendered. Give "
            f"prompts as ready-made text with the placeholder {family.audio_token}, or a checkpoint with a template."
        )
    return processor.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def refuse_foreign_tags(family: Family, tokenizer: Any, prompt: Any) -> None:
    """Refuse a prompt with an audio tag of another model, which would stay in it as text.

    A tag that is one token of this tokenizer stands where the model's own template may put it.

    Raises:
        ModelError: there is such a tag.
    """
    texts = [prompt] if isinstance(prompt, str) else [text for message in _messages(prompt) for text in _texts(message)]
    for tag in AUDIO_TAG.findall(" ".join(texts)):
        if tag != family.audio_token and tokenizer.convert_tokens_to_ids(tag) in (None, tokenizer.unk_token_id):
            raise ModelError(
                f"A prompt holds {tag}, which is no audio tag of this model and would be read as text. Write "
                f"{family.audio_token} in its place, or leave it out: the audio then comes first."
            )


def _texts(message: Mapping[str, Any]) -> list[str]:
    """List the texts of a message."""
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]


def end_of_answer(family: Family, processor: Any, eos_token_ids: Sequence[int]) -> int:
    """Find which end token the chat template writes after an assistant's turn, the one to teach.

    A model may end at several tokens. The first of them in what follows an answer counts; where the template writes
    none of them, or there is no template to ask, it is the tokenizer's own, or else the first.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if family.encode is encode_text and template is not None:
        answer = "\u2603"  # stands for an answer; no template has it
        turns = [("user", "\u2602"), ("assistant", answer), ("user", "\u2602")]
        for count in (2, 3):  # some templates end a turn with the header of the next one
            messages: list[dict[str, Any]] = [
                {"role": role, "content": [{"type": "text", "text": text}] if family.structured else text}
                for role, text in turns[:count]
            ]
            try:
                text = processor.apply_chat_template(messages, chat_template=template, tokenize=False)
            except TemplateError:  # a template may refuse turns that its model does not have
                break
            written = processor.tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
            for token in written:
                if token in eos_token_ids:
                    return token
    own = processor.tokenizer.eos_token_id
    return own if own in eos_token_ids else eos_token_ids[0]


def _flat(content: Any, placeholder: str) -> str:
    """Join the parts of a message into the string that templates without parts take."""
    if isinstance(content, str):
        return content
    return "".join(placeholder if part.get("type") == "audio" else part["text"] for part in content)


def encode(
    family: Family, processor: Any, examples: Sequence[Example], max_prompt_tokens: int | None
) -> dict[str, Tensor]:
    """Turn rows with `prompt` and `audio` into the processor's tensors.

    Raises:
        AudioError: audio cannot be used or is longer than the model takes; the row is named.
        DataError: a row has no prompt or no audio, or its prompt is neither a string nor messages.
        ModelError: a prompt has not exactly one audio placeholder, or is over the limit.
    """
    rate = family.sampling_rate(processor)
    waves = [waveform(family, processor, example) for example in examples]
    if family.encode is encode_text:
        prompts: list[Any] = [render(family, processor, example["prompt"]) for example in examples]
        counts = [text.count(family.audio_token) for text in prompts]
    else:
        for example in examples:
            refuse_foreign_tags(family, processor.tokenizer, example["prompt"])
        prompts = [conversation(family, example["prompt"]) for example in examples]
        counts = [_audio_parts(messages) for messages in prompts]
    for example, count in zip(examples, counts, strict=True):
        check_placeholders(family, example, count)
    batch = family.encode(processor, prompts, waves, rate)
    for example, length in zip(examples, batch["attention_mask"].sum(-1).tolist(), strict=True):
        check_prompt_length(example, length, max_prompt_tokens)
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}


def check_placeholders(family: Family, example: Example, count: int) -> None:
    """Refuse a rendered prompt that has `count` placeholders instead of one.

    Raises:
        ModelError: it has; the row is named.
    """
    if count != 1:
        raise ModelError(
            f"The prompt of {row_name(example)!r} has {count} audio placeholders ({family.audio_token}); exactly one "
            "is allowed, one recording per prompt."
        )


def check_prompt_length(example: Example, tokens: int, allowed: int | None) -> None:
    """Refuse a prompt of more tokens, audio included, than the recipe allows; None allows any number.

    Raises:
        ModelError: it has more; the row is named.
    """
    if allowed is not None and tokens > allowed:
        raise ModelError(
            f"The prompt of {row_name(example)!r} has {tokens} tokens, audio included; at most {allowed} are allowed "
            "(max_prompt_tokens). Raise the limit or shorten the row."
        )


def _audio_parts(messages: Sequence[Mapping[str, Any]]) -> int:
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return sum(part.get("type") == "audio" for part in parts)


def waveform(family: Family, processor: Any, example: Example) -> np.ndarray:
    """Load a row's audio as the model takes it; a file that is too long is refused before it is decoded.

    Raises:
        AudioError: the audio cannot be used, or is longer than the model takes; the row is named.
    """
    return hear(example, rate=family.sampling_rate(processor), longest=family.max_seconds(processor))


def check_length(family: Family, processor: Any, example: Example) -> float:
    """Read a row's seconds, and refuse one whose audio is too long by its header; nothing is decoded.

    Raises:
        AudioError: a file is missing or is no audio, or the audio is longer than the model takes; the row is named.
    """
    return row_seconds(example, rate=family.sampling_rate(processor), longest=family.max_seconds(processor))

"""Prompts that cannot be meant are refused with what a prompt may be."""

import pytest

from leaf.errors import DataError, ModelError
from leaf.model.policy import Policy
from tests.helpers import tiny
from tests.helpers.families import CASES, build


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<sound> and <sound>", "has 2 audio placeholders .*exactly one is allowed"),
        ([{"role": "user", "content": "hello"}], "has 0 audio placeholders"),
        ([{"role": "user", "content": [{"type": "audio"}, {"type": "audio"}]}], "has 2 audio placeholders"),
        ([], "A prompt is an empty list"),
        (None, "no prompt"),
        (5, "A prompt is 5; give a string, or a list of messages"),
        ({"role": "user"}, "give a string, or a list"),
        (["hello"], "message is 'hello'; give each a 'role'"),
        ([{"role": "user"}], "give each a 'role' and a 'content'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "its content is a string, or a list of parts"),
        (
            [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
            "last message is the assistant's",
        ),
        ("<audio>\nwhat is said?", r"holds <audio>, which is no audio tag of this model.*Write <sound>"),
        ("<|AUDIO|>what is said?", r"holds <\|AUDIO\|>"),
        ("<|audio_1|> what is said?", r"holds <\|audio_1\|>"),
        ("Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>", r"holds <\|audio_bos\|>"),
        ("<Speech>", "holds <Speech>"),
        (
            [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "[AUDIO] hi"}]}],
            r"holds \[AUDIO\]",
        ),
        ("<sound> and <audio>", "holds <audio>"),
        ([{"role": "user", "content": None}], "its content is a string, or a list of parts"),
    ],
)
def test_prompts_that_cannot_be_meant(policy, prompt, message):
    with pytest.raises((DataError, ModelError), match=message):
        policy.embed([{**tiny.rows(1)[0], "prompt": prompt}])


@pytest.mark.parametrize("case", CASES)
def test_the_taught_end_is_the_one_that_the_chat_template_writes(case):
    """Not the first of the list, where a model may end at several tokens."""
    written = {"glmasr": "<|user|>", "phi4_multimodal": "<|end|>", "gemma3n": "<end_of_turn>"}
    policy = Policy.wrap(*build(case))
    wanted = written.get(case.split()[0], policy.tokenizer.eos_token)
    assert policy.tokenizer.convert_ids_to_tokens(policy.end_of_answer) == wanted


def test_the_own_placeholder_and_tokens_of_the_model_may_stay_in_a_prompt():
    policy = Policy.wrap(*build("qwen2_audio"))
    text = policy.render("say <b> or [audio file]")
    assert policy.render(text) == text
    policy.render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    )

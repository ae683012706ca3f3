"""Prompts that cannot be meant are refused with what a prompt may be."""

import pytest

from leaf.errors import DataError, ModelError
from tests.helpers import tiny


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
        ([{"role": "user", "content": None}], "its content is a string, or a list of parts"),
    ],
)
def test_prompts_that_cannot_be_meant(policy, prompt, message):
    with pytest.raises((DataError, ModelError), match=message):
        policy.embed([{**tiny.rows(1)[0], "prompt": prompt}])

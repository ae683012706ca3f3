import torch

from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.model.words import words_of
from tests.helpers.tiny import tiny_model


def group_of(tokenizer, texts, *, ended=True):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended for text in texts]
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in ids])
    nothing = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
    return Group(nothing, tokens, lengths, torch.zeros(tokens.shape), torch.zeros(len(ids), dtype=torch.bool))


def said(word, ids):
    return [row[: int(place.max()) + 1].tolist() for row, place in zip(ids, word, strict=True)]


def test_equal_words_have_equal_ids_however_they_are_written():
    tokenizer = tiny_model()[1].tokenizer
    group = group_of(tokenizer, ["Press 7.", "press seven", "Press - SEVEN!", "press eight"])
    words = said(*words_of(group, tokenizer))
    assert words[0] == words[1] == words[2]
    assert len(words[0]) == 3  # two words and the end
    assert words[3][0] == words[0][0]
    assert words[3][1] != words[0][1]
    assert words[3][2] == words[0][2]


def test_every_token_has_the_word_that_it_writes_at():
    tokenizer = tiny_model()[1].tokenizer
    for text in ("Press seven to leave.", "a  b", "日本 7", "...", "", "uh seven uh"):
        for ended in (True, False):
            group = group_of(tokenizer, [text, "x"], ended=ended)
            word, ids = words_of(group, tokenizer)
            length = int(group.lengths[0])
            place = word[0, :length].tolist()
            assert place == sorted(place)
            assert bool((word[0, length:] == -1).all())
            assert not place or (place[0] == 0 and place[-1] < ids.shape[1])
            for i, number in enumerate(place[: length - ended]):
                before = tokenizer.decode(group.tokens[0, : i + 1], skip_special_tokens=True)
                assert number <= max(len(before.split()) - 1, 0)
    texts = group_of(tokenizer, ["press seven now"], ended=False)
    place = words_of(texts, tokenizer)[0][0].tolist()
    assert set(place) == {0, 1, 2}


def test_a_completion_without_a_word_has_one():
    tokenizer = tiny_model()[1].tokenizer
    words = said(*words_of(group_of(tokenizer, ["...", "?!"]), tokenizer))
    assert words[0] == words[1]
    assert len(words[0]) == 2

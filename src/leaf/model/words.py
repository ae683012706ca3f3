"""The words of completions, token by token, for credit by words (leaf.credit.words)."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from leaf.model.sampling import Group
from leaf.normalising import normaliser

_END = "⏎"  # the word of the end-of-sequence token
_NONE = "-"  # of a completion that says no word


def words_of(group: Group, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Find the word of every token of a group.

    A word is what stands between white space, as Whisper's English normaliser writes it: without case and punctuation,
    numbers as digits. What it drops belongs to the word before. The end-of-sequence token is a word of its own.

    Returns:
        (K, T) the number of each token's word in its completion, −1 at padding; and (K, W) ids of these words, equal
        within the group where the words are.
    """
    known: dict[str, int] = {}
    word = torch.full(group.tokens.shape, -1, dtype=torch.long)
    rows = []
    for k, (tokens, length) in enumerate(zip(group.tokens, group.lengths.tolist(), strict=True)):
        numbers, said = _spell(tokens[:length].tolist(), tokenizer)
        word[k, :length] = torch.tensor(numbers, dtype=torch.long)
        rows.append([known.setdefault(one, len(known)) for one in said])
    width = max(map(len, rows), default=0)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return word, ids.reshape(len(rows), width)


def _spell(tokens: list[int], tokenizer: Any) -> tuple[list[int], list[str]]:
    """List the number of each token's word, and the words.

    The text is decoded token by token, so that a token belongs to the last word that it writes at.
    """
    ended = bool(tokens) and tokens[-1] in tokenizer.all_special_ids
    numbers: list[int] = []
    said: list[str] = []
    for i in range(len(tokens) - ended):
        text = tokenizer.decode(tokens[: i + 1], skip_special_tokens=True)
        said = [plain for plain in map(_plain, text.split()) if plain]
        numbers.append(max([0, len(said) - 1, *numbers[-1:]]))
    # What looked like a word while it was half written may have been dropped in the end.
    said += [_NONE] * (max(numbers, default=-1) + 1 - len(said))
    if ended:
        numbers.append(len(said))
        said.append(_END)
    return numbers, said


@cache
def _plain(word: str) -> str:
    plain = normaliser("whisper")(word)
    return plain if any(map(str.isalnum, plain)) else ""

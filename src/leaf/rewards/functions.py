"""The built-in reward functions, in TRL's signature: `(completions, reference, **columns) -> one float per completion`.

They compare each completion with its reference. TRL's GRPOTrainer takes them as they are.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.bleu import AUTO, bleu_scorer, tokenizer_for
from leaf.credit.registry import check_options
from leaf.data.rows import prompt_text
from leaf.errors import ConfigError, DataError
from leaf.normalising import normaliser
from leaf.text import edits, exact_match, fold_whitespace, rouge_f, token_f1

RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
BuiltIn = Callable[..., list[float]]
# Completion, all references that are right and their language, "" where it is not stated → [0, 1].
Score = Callable[[str, Sequence[str], str], float]


def _bleu(*, tokenize: str = AUTO, lowercase: bool = False) -> Score:
    """Score as sacrebleu.sentence_bleu: nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp, and by language another tok."""

    def score(completion: str, references: Sequence[str], language: str) -> float:
        chosen = tokenizer_for(language) if tokenize == AUTO else tokenize
        return _sacrebleu(bleu_scorer(chosen, lowercase=lowercase), completion, references)

    return score


def _chrf(*, char_order: int = 6, word_order: int = 0, beta: int = 2, lowercase: bool = False) -> Score:
    """Score as sacrebleu.sentence_chrf: nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no."""
    scorer = chrf_scorer(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)
    return lambda completion, references, language: _sacrebleu(scorer, completion, references)


def chrf_scorer(*, char_order: int = 6, word_order: int = 0, beta: int = 2, lowercase: bool = False) -> CHRF:
    """Make sacreBLEU's scorer of chrF; with two words of `word_order` it is chrF++."""
    if char_order < 1 or word_order < 0 or beta < 1:
        raise ConfigError(
            f"char_order {char_order}, word_order {word_order} and beta {beta}: allowed are 1 or more, 0 or more, and "
            "1 or more."
        )
    return CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)


def _sacrebleu(metric: BLEU | CHRF, completion: str, references: Sequence[str]) -> float:
    return min(metric.sentence_score(completion, references).score / 100, 1.0)  # a copy may be 1 + 4e-16


def _error_rate(characters: bool, *, normalise: str = "none") -> Score:
    fold = normaliser(normalise)

    def accuracy(completion: str, reference: str) -> float:
        """Compute 1 minus the error rate, at least 0: more edits may be needed than the reference has words."""
        wrong, length = edits(fold(completion), fold(reference), characters=characters)
        return max(0.0, 1.0 - wrong / max(length, 1))  # a normaliser may leave no word of a reference

    return _best(accuracy)


def _best(function: Callable[[str, str], float]) -> Score:
    """Score by the reference that fits best, in any language."""
    return lambda completion, references, language: max(function(completion, one) for one in references)


# Name → what makes its score of the options. All scores are in [0, 1]. `wer` and `cer` are 1 minus the error rate, at
# least 0: more is better, as for the others.
_SCORES: dict[str, Callable[..., Score]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "rouge_l": lambda: _best(partial(rouge_f, "rougeL")),
    "wer": lambda *, normalise="none": _error_rate(False, normalise=normalise),
    "cer": lambda *, normalise="none": _error_rate(True, normalise=normalise),
    "exact_match": lambda: _best(exact_match),
    "token_f1": lambda: _best(token_f1),
}


def built_in(name: str, **options: Any) -> BuiltIn:
    """Make a built-in reward function: it scores each completion against its reference, white space folded in both.

    Where a row has several `references`, bleu and chrf take all of them as sacreBLEU does, the others the best one.

    Args:
        name: of `REWARDS`.
        options: `bleu` takes sacreBLEU's tokenize and lowercase. Its default is `auto`: the tokenizer that the row's
            `reference_language` needs, 13a where none is stated. `chrf` takes its char_order (6), word_order (0), beta
            (2) and lowercase, `wer` and `cer` take normalise (none, basic, whisper). The others take none.

    Raises:
        ConfigError: there is no such option, or not with that value.
    """
    defaults = {p.name: p.default for p in inspect.signature(_SCORES[name]).parameters.values()}
    check_options(f"reward {name}", defaults, options)
    try:
        score = _SCORES[name](**options)
        if options:
            score("a b", ["a b"], "")  # some tokenizers come only with a further package
    except ConfigError as error:
        raise ConfigError(f"The options of the reward {name} do not fit: {error}") from error

    def function(completions: Sequence[Any], reference: Sequence[str], **columns: Any) -> list[float]:
        if len(completions) != len(reference):
            raise DataError(f"{len(completions)} completions came with {len(reference)} references; give one for each.")
        for i, theirs in enumerate(reference):
            if not isinstance(theirs, str) or not theirs.strip():
                raise DataError(f"Reference {i} is {theirs!r}; every completion needs a text to be compared with.")
        languages = columns.get("reference_language") or [""] * len(reference)
        several = columns.get("references") or [None] * len(reference)
        return [
            score(fold_whitespace(prompt_text(ours)), [*map(fold_whitespace, more or [theirs])], language or "")
            for ours, theirs, more, language in zip(completions, reference, several, languages, strict=True)
        ]

    function.__name__ = function.__qualname__ = name  # TRL logs a reward under this name
    return function


def check_languages(languages: Iterable[Any], *, tokenize: str = AUTO, **options: Any) -> None:
    """Refuse languages of references for whose tokenizer the reward bleu lacks a package.

    Args:
        languages: `reference_language` of the rows.
        tokenize: of the reward's options; the others do not matter.

    Raises:
        ConfigError: a package is missing: which.
        DataError: a language is no text.
    """
    if tokenize == AUTO:
        for name in sorted({tokenizer_for(language) for language in languages}):
            bleu_scorer(name)


REWARDS: dict[str, BuiltIn] = {name: built_in(name) for name in _SCORES}

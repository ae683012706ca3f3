"""Say where a metric or reward does not fit the references: texts without spaces, answers of few words, marks."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from leaf.bleu import AUTO, SHORT, bleu_scorer, common_tokenizer, is_unspaced, short_references, tokenizer_for
from leaf.errors import ConfigError
from leaf.evaluation.registry import fitted_metric, is_plain, name_and_options, validation_metrics
from leaf.rewards.total import Rewards
from leaf.text import ROUGES, composed, rouge_f

# They take what white space separates for a word.
_OF_WORDS = ("wer", "token_f1", "meteor")
_LOOKED_AT = 1000  # references of a training set: enough to see how they are written


def advice(metrics: Sequence[str], references: Sequence[str], languages: Sequence[str | None]) -> list[str]:
    """Write a line for each metric that says little about these references, with what to take instead.

    Args:
        metrics: as they are written in a recipe.
        references: one text per item.
        languages: of the references, None where it is not known.
    """
    lines = [_advice(*of) or _length_advice(*of) for of in ((one, references, languages) for one in metrics)]
    return [line for line in lines if line]


def fitting_metrics(
    best: str | None, references: Sequence[str], languages: Sequence[str | None]
) -> tuple[tuple[str, ...], list[str]]:
    """List the metrics of validation that can be computed for these references.

    Args:
        best: the metric that is asked for; None for a reward.
        references: one text per item; none where no row may be read for it.
        languages: of the references, None where it is not known.

    Returns:
        The metrics, and a line for each of `validation_metrics` that is left out.

    Raises:
        ConfigError: the metric that is asked for cannot be computed: languages together, or a package is missing.
    """
    names, lines = [], []
    for name in validation_metrics(best):
        try:
            if references and is_plain(name):
                fitted_metric(name, references, languages=languages)
        except ConfigError as error:
            if name == best:
                raise ConfigError(f"best_metric is {best}, which cannot be measured in validation. {error}") from error
            lines.append(f"{name} is not measured in validation. {error}")
            continue
        names.append(name)
    return tuple(names), lines


def reward_advice(rewards: Rewards, references: Sequence[str], languages: Sequence[str | None]) -> list[str]:
    """Write such a line for each built-in reward."""
    lines = []
    for name, options in rewards.built_in.items():
        # A reward's options are those of the metric that it is, except for sentence BLEU's order and case.
        same = "".join(f":{key}={options[key]}" for key in ("tokenize", "normalise") if key in options)
        written = f"{'rougeL' if name == 'rouge_l' else name}{same}"
        line = _advice(written, references[:_LOOKED_AT], languages[:_LOOKED_AT])
        lines += [f"reward {line}"] if line else []
    return lines


def texts_and_languages(rows: Any) -> tuple[list[str], list[str | None]]:
    """Read references and their languages where no row has to be read for it: of a data set or a list; else nothing."""
    names = getattr(rows, "column_names", None)
    if names is not None:
        columns = {name: rows[name] if name in names else [None] * len(rows) for name in _READ}
        pairs = zip(columns["reference"], columns["reference_language"], strict=True)
    elif isinstance(rows, list | tuple):
        pairs = ((row.get("reference"), row.get("reference_language")) for row in rows)
    else:
        return [], []
    known = [(text, language) for text, language in pairs if isinstance(text, str) and text.strip()]
    return [text for text, _ in known], [language for _, language in known]


_READ = ("reference", "reference_language")


def _advice(written: str, references: Sequence[str], languages: Sequence[str | None]) -> str | None:
    name, options = name_and_options(written)
    count = len(references)
    if options.get("normalise") == "whisper" and (marked := sum(map(_has_marks, references))):
        return (
            f"{written}: {marked} of {count} references have combining marks, such as the vowel signs of Hindi and "
            "Thai. Whisper's normaliser for English drops them, so that different words count as equal; take "
            "normalise=basic or normalise=none"
        )
    if name in _OF_WORDS:
        unspaced = sum(map(is_unspaced, references))
        if 10 * unspaced > count:
            return f"{written}: {_spaceless(unspaced, count)}, so that each counts as one word or few; take cer or chrf"
    if name in ROUGES:
        nothing = sum(rouge_f(name, text, text) == 0 for text in references)
        lack = "no two words of a to z and 0 to 9" if name == "rouge2" else "no letter from a to z and no digit"
        return (
            f"{written}: {nothing} of {count} references have {lack}: they score 0 whatever is said"
            if nothing
            else None
        )
    if name == "bleu":
        return _bleu_advice(written, options.get("tokenize", AUTO), references, languages)
    return None


def _has_marks(text: str) -> bool:
    """Tell whether a text has marks of its own: composed letters such as é have none."""
    return any(unicodedata.category(character).startswith("M") for character in composed(text))


def _bleu_advice(written: str, tokenize: str, references: Sequence[str], languages: Sequence[str | None]) -> str | None:
    """Say where BLEU's tokenizer takes whole sentences for words."""
    count = len(references)
    tokenizers = [tokenizer_for(language) if tokenize == AUTO else tokenize for language in languages]
    taken_whole = sum(
        by in ("13a", "intl", "none") and is_unspaced(text) for by, text in zip(tokenizers, references, strict=True)
    )
    if 10 * taken_whole <= count:  # a few foreign words in a set are no reason
        return None
    return (
        f"{written}: {_spaceless(taken_whole, count)}, and the tokenizer {tokenizers[0]} takes each for one word or "
        "few. Name another one, such as zh, ja-mecab, ko-mecab or char (bleu:tokenize=zh for a metric, "
        "reward_options={bleu: {tokenize: zh}} for a reward), or give rows a column reference_language"
    )


def _length_advice(written: str, references: Sequence[str], languages: Sequence[str | None]) -> str | None:
    """Say where references are too short for BLEU's four-grams."""
    name, options = name_and_options(written)
    if name != "bleu" or not references:
        return None
    tokenize = options.get("tokenize", AUTO)
    few = short_references(bleu_scorer(common_tokenizer(languages) if tokenize == AUTO else tokenize), references)
    if 2 * few < len(references):
        return None
    stays = options.get("effective_order") == "no"
    how = "it may stay at 0" if stays else "it stops at the n-grams that there are (effective order, eff:yes)"
    return (
        f"{written}: {few} of {len(references)} references have fewer than {SHORT} tokens, so {how}; exact_match and "
        "chrf say more"
    )


def _spaceless(some: int, count: int) -> str:
    return f"{some} of {count} references have no spaces between their words"

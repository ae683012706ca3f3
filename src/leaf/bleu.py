"""BLEU with the tokenizer that a language needs, and whether texts have the words that word scores compare.

Rewards and metrics both make sacreBLEU's scorer here, so that a reward is what is measured later.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from sacrebleu.metrics.bleu import BLEU

from leaf.errors import ConfigError, DataError, did_you_mean, shown

TOKENIZERS = tuple(BLEU.TOKENIZERS)
AUTO = "auto"  # of the option `tokenize`: by the language of the references, 13a where none is stated
SHORT = 4  # tokens; a shorter reference has no n-gram of BLEU's highest order
# Language of the references → tokenizer; 13a for all others. sacreBLEU's own choice for zh, ja and ko. It has none for
# the other scripts without spaces, where `char` needs no further package.
_BY_LANGUAGE = {
    **dict.fromkeys(("zh", "zho", "cmn", "yue"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
    **dict.fromkeys(("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod"), "char"),
}
# Tokenizer → how to get what it needs.
_NEEDS = {
    "ja-mecab": 'pip install "sacrebleu[ja]"',
    "ko-mecab": 'pip install "sacrebleu[ko]"',
    **dict.fromkeys(
        ("spm", "flores101", "flores200", "spBLEU-1K"),
        "pip install sentencepiece; sacreBLEU then downloads its model",
    ),
}
# Thai, Lao, Tibetan, Myanmar, Khmer, Hiragana, Katakana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@lru_cache(maxsize=32)
def bleu_scorer(tokenize: str = "13a", *, lowercase: bool = False, effective_order: bool = True) -> BLEU:
    """Make sacreBLEU's scorer.

    Args:
        tokenize: one of `TOKENIZERS`.
        lowercase: fold case first.
        effective_order: score a text that has no n-gram of an order by the lower orders: always so for one sentence.

    Raises:
        ConfigError: there is no such tokenizer, or what it needs is missing.
    """
    if tokenize not in TOKENIZERS:
        raise ConfigError(
            f"tokenize is {shown(tokenize)}; allowed are {AUTO}, {', '.join(TOKENIZERS)}."
            f"{did_you_mean(tokenize, TOKENIZERS)}"
        )
    try:
        scorer = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=effective_order)
        scorer.tokenizer("a b")
    except Exception as error:  # of whatever package a tokenizer is from
        reason = f" ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        missing = isinstance(error, ImportError | RuntimeError) and tokenize in _NEEDS  # so says sacreBLEU
        why = f"needs what is not here: {_NEEDS[tokenize]}" if missing else f"fails{reason}"
        raise ConfigError(
            f"BLEU's tokenizer {tokenize} {why}. Or choose another one with the option `tokenize`, such as char."
        ) from error
    return scorer


def tokenizer_for(language: str | None) -> str:
    """Choose the tokenizer for references in a language, such as `zh-CN`; None where it is not known.

    Raises:
        DataError: the language is no text.
    """
    if language is not None and language == language and not isinstance(language, str):  # tables write NaN for nothing
        raise DataError(f"reference_language is {shown(language)}; give the name of a language, such as zh-CN.")
    language = language if isinstance(language, str) else None
    return _BY_LANGUAGE.get(re.split("[-_]", language or "")[0].lower(), "13a")


def common_tokenizer(languages: Iterable[str | None]) -> str:
    """Choose the one tokenizer for references in some languages.

    Raises:
        ConfigError: they need different ones.
    """
    chosen = {tokenizer_for(language): language for language in languages}
    if len(chosen) > 1:
        ways = ", ".join(f"{tokenizer} for {language or 'none stated'}" for tokenizer, language in chosen.items())
        raise ConfigError(
            f"The references are in languages whose tokenizers differ ({ways}), and BLEU has one. Score the languages "
            "apart, or name one tokenizer for all: bleu:tokenize=char."
        )
    return next(iter(chosen), "13a")


def short_references(scorer: BLEU, references: Sequence[str]) -> int:
    """Count the references of fewer than `SHORT` tokens."""
    return sum(len(scorer.tokenizer(text).split()) < SHORT for text in references)


def is_unspaced(text: str) -> bool:
    """Tell whether a text is written without spaces between its words: in Chinese, Japanese, Thai or the like."""
    letters = len(_UNSPACED.findall(text))
    words = text.split()
    return 2 * letters > sum(map(len, words)) and letters > 6 * (len(words) - 1)

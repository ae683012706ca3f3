"""Scores that fit the language and the length of the references."""

import importlib.util
import re
import unicodedata

import numpy as np
import pytest
import sacrebleu
from datasets import Dataset
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.bleu import TOKENIZERS, bleu_scorer, is_unspaced, tokenizer_for
from leaf.errors import ConfigError
from leaf.evaluation.fitting import advice, reward_advice, texts_and_languages
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.registry import bootstrap, less_is_better, metric, name_and_options, score, validation_metrics
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards

CHINESE = ["今天下午三点开会。", "请把窗户关上。", "他昨天去了北京图书馆。", "我们明天早上出发。"]
NEARLY = ["今天下午三点开会。", "请把窗户打开。", "他昨天去了北京图书馆。", "我们明天早上就出发。"]
NONSENSE = ["苹果汽车蓝色", "飞机吃月亮", "石头唱歌跳舞", "海里有三个梦"]
ANSWERS = ["Monday", "yes", "twelve", "No.", "at six"]


def bleu_of(predictions, references, written="bleu", **more):
    return score(predictions, references, [written], **more)[written]


def test_chinese_needs_its_tokenizer():
    for nothing in (bleu_of(NEARLY, CHINESE), bleu_of(NONSENSE, CHINESE)):
        assert nothing.value < 60  # whole sentences, right or wrong
    good, bad = (bleu_of(texts, CHINESE, "bleu:tokenize=zh") for texts in (NEARLY, NONSENSE))
    assert good.value == sacrebleu.corpus_bleu(NEARLY, [CHINESE], tokenize="zh").score > 70
    assert bad.value < 5
    assert "|tok:zh|" in good.signature
    # The same where the rows state their language, for the reward too.
    stated = bleu_of(NEARLY, CHINESE, languages=["zh-CN"] * 4)
    assert (stated.value, stated.signature) == (good.value, good.signature)
    given = {"completions": NEARLY, "reference": CHINESE}
    by_option, by_language = (
        Rewards(["bleu"], options=options)(**given, **columns).totals
        for options, columns in (
            ({"bleu": {"tokenize": "zh"}}, {}),
            (None, {"reference_language": ["zh-CN"] * 4}),
        )
    )
    np.testing.assert_array_equal(by_option, by_language)
    assert len(set(by_option)) > 2  # a group's rewards differ
    mixed = REWARDS["bleu"]([NEARLY[1], "Close it."], ["请把窗户关上。", "Close it."], reference_language=["zh", None])
    assert 0.3 < mixed[0] < 0.9
    assert mixed[1] == pytest.approx(1.0)


def test_languages_whose_tokenizers_differ_are_not_scored_together():
    wanted = r"zh for zh, 13a for none stated.*bleu:tokenize=char"
    with pytest.raises(ConfigError, match=wanted):
        bleu_of(["a", "b"], ["a", "b"], languages=["zh", None])
    assert bleu_of(["a", "b"], ["a", "b"], languages=["de", None]).signature.count("tok:13a") == 1
    assert bleu_of(["a", "b"], ["a", "b"], "bleu:tokenize=char", languages=["zh", None]).value == pytest.approx(100)


def test_every_tokenizer_works_or_says_what_it_needs():
    for name in TOKENIZERS:
        if name in ("spm", "flores101", "flores200", "spBLEU-1K"):
            continue  # they download a model
        package = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko"}.get(name, "sacrebleu")
        if importlib.util.find_spec(package) is None:
            with pytest.raises(ConfigError, match=rf'needs what is not here: pip install "sacrebleu\[{name[:2]}\]"'):
                bleu_scorer(name)
        else:
            assert bleu_scorer(name).sentence_score("a b", ["a b"]).score == pytest.approx(100.0)
    assert [tokenizer_for(one) for one in ("zh-CN", "ZH_tw", "ja", "ko", "th", "de", "", None)] == [
        *("zh", "zh", "ja-mecab", "ko-mecab", "char", "13a", "13a", "13a")
    ]
    with pytest.raises(ConfigError, match=r"tokenize is 'zhh'; allowed are auto, none, zh.*Did you mean 'zh'"):
        metric("bleu:tokenize=zhh")


def test_options_of_metrics():
    assert name_and_options("bleu") == ("bleu", {})
    assert name_and_options("bleu:tokenize=zh:effective_order=no") == (
        "bleu",
        {"tokenize": "zh", "effective_order": "no"},
    )
    assert name_and_options("a=b/my.py:polite") == ("a=b/my.py:polite", {})
    assert name_and_options("my.py:polite:words=2") == ("my.py:polite", {"words": "2"})
    ours, theirs = ["press one now", "go"], ["press two now", "go on"]
    plus = score(ours, theirs, ["chrf:word_order=2"])["chrf:word_order=2"]
    assert plus.value == CHRF(word_order=2).corpus_score(ours, [theirs]).score
    assert "|nw:2|" in plus.signature
    assert less_is_better("wer:normalise=basic")
    assert validation_metrics("bleu:tokenize=zh") == ("bleu:tokenize=zh", "exact_match", "chrf")
    for written, said in (
        ("bleu:tokenise=zh", "metric bleu does not take the option tokenise. Did you mean 'tokenize'"),
        ("bleu:effective_order=maybe", "effective_order is 'maybe'; allowed are auto, yes, no"),
        ("chrf:word_order=two", "word_order of the metric chrf is 'two', a str; it must be a whole number"),
        ("exact_match:case=no", "metric exact_match does not take the option case. Allowed are punctuation"),
        ("token_f1:case=no", "metric token_f1 does not take the option case. It takes none"),
        ("wer:normalise=wisper", "normalise is 'wisper'; allowed are none, basic, whisper. Did you mean 'whisper'"),
        ("meteor:alpha=1", "The metric meteor takes no options"),
        ("blue:tokenize=zh", "The metric 'blue' is unknown. Did you mean 'bleu'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            metric(written)


# -- short references --------------------------------------------------------------------------------------------------
def test_answers_of_a_word_have_a_bleu_that_moves():
    perfect = bleu_of(ANSWERS, ANSWERS)
    assert perfect.value == pytest.approx(100.0)
    assert "|eff:yes|" in perfect.signature
    halves = bleu_of(["Monday", "no", "twelve", "Yes.", "at six"], ANSWERS)
    assert 30 < halves.value < 90
    reference = BLEU(effective_order=True).corpus_score(["Monday", "no", "twelve", "Yes.", "at six"], [ANSWERS])
    assert halves.value == reference.score
    assert bleu_of(ANSWERS, ANSWERS, "bleu:effective_order=no").value == 0.0  # as sacreBLEU's corpus_bleu
    # The references decide, and not what was said: both systems of a comparison are computed alike.
    rambling = ["I think that it is on Monday, is it not?"] * 5
    assert bleu_of(rambling, ANSWERS).signature == perfect.signature
    assert bootstrap(ANSWERS, ANSWERS, "bleu") == pytest.approx((100.0, 100.0, 100.0))
    long = ["Press one to leave the menu."] * 3
    assert "|eff:no|" in bleu_of(ANSWERS, [*long, "yes", "no"]).signature


# -- what does not fit -------------------------------------------------------------------------------------------------
def test_texts_without_spaces():
    for text in (*CHINESE, "会議は三時に始まります。", "สวัสดีครับ วันนี้อากาศดี", "東京"):
        assert is_unspaced(text)
    for text in ("今天 下午 三点 开会 。", "오늘 오후에 회의가 있습니다.", "Monday", "I met 李明 in Berlin.", "", "42"):
        assert not is_unspaced(text)


def test_metrics_that_say_little_are_named():
    nothing = [None] * 4
    assert advice(list(METRICS), ["Press one to leave now."] * 4, nothing) == []
    (line,) = advice(["bleu"], CHINESE, nothing)
    assert line.startswith("bleu: 4 of 4 references have no spaces between their words, and the tokenizer 13a")
    assert "bleu:tokenize=zh" in line
    assert "reference_language" in line
    assert advice(["bleu:tokenize=zh", "chrf", "cer", "exact_match"], CHINESE, nothing) == []
    assert advice(["bleu"], CHINESE, ["zh-CN"] * 4) == []
    found = advice(["wer", "token_f1", "rouge1", "rouge2"], CHINESE, nothing)
    assert [line.split(":")[0] for line in found] == ["wer", "token_f1", "rouge1", "rouge2"]
    (line,) = advice(["bleu", "exact_match"], ANSWERS, [None] * 5)
    assert "5 of 5 references have fewer than 4 tokens" in line
    assert "eff:yes" in line
    assert "it may stay at 0" in advice(["bleu:effective_order=no"], ANSWERS, [None] * 5)[0]
    assert len(advice(["rouge2"], ANSWERS, [None] * 5)) == 1


def test_rewards_that_say_little_are_named():
    rows = Dataset.from_list([{"prompt": "?", "audio": "a.wav", "reference": text} for text in CHINESE])
    texts, languages = texts_and_languages(rows)
    assert (texts, languages) == (CHINESE, [None] * 4)
    found = reward_advice(Rewards(["bleu", "chrf", "token_f1", "rouge_l"]), texts, languages)
    assert [line.split(":")[0] for line in found] == ["reward bleu", "reward token_f1", "reward rougeL"]
    assert reward_advice(Rewards(["bleu"], options={"bleu": {"tokenize": "zh"}}), texts, languages) == []
    stated = texts_and_languages([{"reference": text, "reference_language": "zh"} for text in CHINESE])
    assert reward_advice(Rewards(["bleu"]), *stated) == []
    assert reward_advice(Rewards(["bleu"]), *texts_and_languages([{"prompt": "no reference"}])) == []
    assert texts_and_languages(iter(rows)) == ([], [])


# -- error rates -------------------------------------------------------------------------------------------------------
def test_error_rates_with_a_normaliser():
    ours, theirs = ["HELLO WORLD"], ["Hello, world."]
    values = {
        name: score(ours, theirs, [f"wer:normalise={name}"])[f"wer:normalise={name}"]
        for name in ("none", "basic", "whisper")
    }
    assert [one.value for one in values.values()] == [100.0, 0.0, 0.0]
    assert values["none"].signature == score(ours, theirs, ["wer"])["wer"].signature
    assert values["basic"].signature.startswith("wer|norm:basic|numbers:kept|case:lc|jiwer:")
    assert values["whisper"].signature.startswith("wer|norm:whisper-en|spelling:as-is|transformers:")
    assert score(ours, theirs, ["cer:normalise=basic"])["cer:normalise=basic"].value == 0.0
    # Numbers, contractions and fillers: 1 of 4 words wrong.
    said, wanted = ["uh I won't pay $20"], ["I will not pay twenty dollars"]
    assert score(said, wanted, ["wer:normalise=whisper"])["wer:normalise=whisper"].value == 0.0
    assert Rewards(["wer"], options={"wer": {"normalise": "basic"}})(completions=ours, reference=theirs).totals == [1.0]


def test_a_normaliser_that_drops_vowel_signs_is_named():
    hindi, name = ["की को है", "yes"], "wer:normalise=whisper"
    assert score(["का कि है", "yes"], hindi, [name])[name].value == 0.0
    (line,) = advice([name, "wer:normalise=basic", "wer"], hindi, ["hi", "en"])
    assert line.startswith(f"{name}: 1 of 2 references have combining marks")
    assert line.endswith("take normalise=basic or normalise=none")
    french = [unicodedata.normalize("NFD", "l'élève"), "où"]  # composed letters have no marks of their own
    assert advice([name], french, ["fr", "fr"]) == []
    (of_reward,) = reward_advice(Rewards(["cer"], options={"cer": {"normalise": "whisper"}}), hindi, ["hi", "en"])
    assert of_reward.startswith("reward cer:normalise=whisper: 1 of 2 references have combining marks")


def test_a_reference_of_which_a_normaliser_leaves_nothing():
    name = "wer:normalise=whisper"
    assert score(["yes yes", "no"], ["um", "no"], [name])[name].value == 200.0  # two insertions, one word
    assert score(["", "no"], ["um", "no"], [name])[name].value == 0.0
    assert all(np.isfinite(np.array(bootstrap(["yes", "no"], ["um", "no"], name), float)))
    assert Rewards(["wer"], options={"wer": {"normalise": "whisper"}})(
        completions=["yes", ""], reference=["um", "um"]
    ).totals.tolist() == [0.0, 1.0]

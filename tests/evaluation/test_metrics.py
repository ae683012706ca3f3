import json
import re
import sys
from typing import Any

import jiwer
import nltk
import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import single_meteor_score
from rouge_score import rouge_scorer
from sacrebleu.metrics.chrf import CHRF
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from leaf.errors import ConfigError, DataError
from leaf.evaluation import bootstrap as bootstrap_module
from leaf.evaluation import model_metrics
from leaf.evaluation.bootstrap import Scored, _draw_weights, _resample, mean_interval, student_quantile
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.registry import bootstrap, metric, paired_bootstrap, score, statistics
from leaf.text import exact_match, normalise, token_f1
from tests.helpers.wordnet import write_wordnet

OURS = ["Press one to leave.", "You have two new messages", "", "It is Monday, March third.", "zero"]
THEIRS = [
    "Press one to leave the menu.",
    "You have two old messages.",
    "Hello there.",
    "It is Monday, March third.",
    "b",
]
WORDS = st.lists(st.sampled_from(["press", "one", "two", "Now", "menu", "."]), min_size=1, max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS | st.just(""), WORDS), min_size=1, max_size=6)


def test_values_are_those_of_the_reference_packages():
    got = {name: value.value for name, value in score(OURS, THEIRS, list(METRICS)).items()}
    assert got["bleu"] == sacrebleu.corpus_bleu(OURS, [THEIRS]).score
    assert got["chrf"] == sacrebleu.corpus_chrf(OURS, [THEIRS]).score
    assert got["wer"] == pytest.approx(100 * jiwer.wer(THEIRS, OURS))
    assert got["cer"] == pytest.approx(100 * jiwer.cer(THEIRS, OURS))
    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = rouge_scorer.RougeScorer([name], use_stemmer=False)
        each = [scorer.score(r, p)[name].fmeasure for p, r in zip(OURS, THEIRS, strict=True)]
        assert got[name] == pytest.approx(100 * float(np.mean(each)))
    assert got["exact_match"] == 20.0
    # 4 of 4 + 6, 4 of 5 + 5, none, all, none: (0.8 + 0.8 + 0 + 1 + 0) / 5.
    assert got["token_f1"] == pytest.approx(52.0)


def test_values_by_hand():
    assert score(["a b x"], ["a b c d"], ["wer"])["wer"].value == 50.0  # one substitution, one deletion, of 4
    assert score(["a b c"], ["a"], ["wer"])["wer"].value == 200.0
    assert score(["ab", "c"], ["abcd", "c"], ["cer"])["cer"].value == 40.0  # 2 of 5 characters, not a mean of rates


def test_lowercase_is_that_of_sacrebleu():
    shouted = [text.upper() for text in OURS]
    got = score(shouted, THEIRS, ["bleu", "chrf"], lowercase=True)
    assert got["bleu"].value == sacrebleu.corpus_bleu(shouted, [THEIRS], lowercase=True).score
    assert got["chrf"].value == CHRF(lowercase=True).corpus_score(shouted, [THEIRS]).score
    for name, one in got.items():
        assert "|case:lc|" in one.signature
        assert one.value > score(shouted, THEIRS, [name])[name].value


def test_lowercase_of_the_others():
    assert score(["A B"], ["a b"], ["wer"])["wer"].value == 100.0
    assert score(["A B"], ["a b"], ["wer"], lowercase=True)["wer"].value == 0.0
    for name in ("exact_match", "token_f1", "rougeL"):  # fold case in any event, and say so
        assert score(["A B"], ["a b"], [name])[name].value == 100.0
        assert "|case:lc|" in score(["A B"], ["a b"], [name])[name].signature


def test_signatures_reproduce():
    signatures = {name: value.signature for name, value in score(OURS, THEIRS, list(METRICS)).items()}
    version = sacrebleu.__version__
    assert signatures["bleu"] == f"bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert signatures["chrf"] == f"chrf|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert signatures["wer"].startswith("wer|punctuation:yes|case:mixed|jiwer:4")
    assert signatures["rougeL"].startswith("rougeL|f1|stemmer:no|tok:a-z0-9|case:lc|rouge-score:0.1")
    assert len(set(signatures.values())) == len(METRICS)


def test_white_space_is_folded():
    for name in METRICS:  # jiwer alone takes "a\nb" for one word
        ours, theirs = ["Press  one\nnow\t "], [" Press one\u00a0now"]
        assert (
            score(ours, theirs, [name])[name].value == score(["Press one now"], ["Press one now"], [name])[name].value
        )


def test_normalise():
    assert normalise("  “Don’t”  go —\nNOW! ") == "dont go now"
    assert normalise("3.5 %") == "35"
    assert normalise(" ?! ") == "?!"  # nothing else is left: it must differ from an empty text
    assert normalise(" ") == ""
    assert exact_match("", "?") == token_f1("", "?") == 0.0
    assert exact_match("?", "?") == token_f1("?", "?") == 1.0
    assert token_f1("a a b", "a b b c") == pytest.approx(4 / 7)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20))
def test_normalise_twice_is_once(text):
    assert normalise(normalise(text)) == normalise(text)


def _index(row):
    return [i for i, count in enumerate(row.astype(int)) for _ in range(count)]


@pytest.mark.parametrize("name", list(METRICS))
def test_a_resample_is_scored_as_the_metric_scores_it(name):
    items = metric(name).items(OURS, THEIRS)
    rows = np.concatenate(list(_draw_weights(len(OURS), 20, seed=1)))
    assert rows.sum(1).tolist() == [len(OURS)] * 20
    assert len(np.unique(rows, axis=0)) > 10
    for row, value in zip(rows, _resample(metric(name).total, items, 20, seed=1), strict=True):
        ours, theirs = [[side[i] for i in _index(row)] for side in (OURS, THEIRS)]
        assert value == pytest.approx(score(ours, theirs, [name])[name].value, abs=1e-9)
        if name == "bleu":
            assert value == pytest.approx(sacrebleu.corpus_bleu(ours, [theirs]).score, abs=1e-9)


def test_draws_are_uniform_and_do_not_depend_on_the_memory_allowed(monkeypatch):
    whole = np.concatenate(list(_draw_weights(7, 4000, seed=3)))
    np.testing.assert_allclose(whole.mean(0), 1.0, atol=0.08)  # 5 standard errors: sqrt(6/7 / 4000) = 0.0146
    np.testing.assert_allclose(whole.var(0), 6 / 7, atol=0.12)  # binomial(7, 1/7)
    monkeypatch.setattr(bootstrap_module, "_WEIGHTS_AT_ONCE", 50)
    chunks = list(_draw_weights(7, 4000, seed=3))
    assert max(len(chunk) for chunk in chunks) == 7
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_bootstrap_point_and_interval():
    for name in METRICS:
        value, low, high = bootstrap(OURS, THEIRS, name, groups=["x", "x", "y", "y", "y"])
        assert value == score(OURS, THEIRS, [name])[name].value
        assert low <= high
    value, low, high = bootstrap(OURS, THEIRS, "bleu", seed=5)
    assert low <= value <= high
    assert bootstrap(OURS, THEIRS, "bleu", seed=5) == (value, low, high)
    assert bootstrap(OURS, THEIRS, "bleu", seed=5, level=0.5)[1] > low


def test_the_interval_of_a_share_is_the_binomial_one():
    # 100 items, 30 right: the bootstrap draws binomial(100, 0.3), whose 2.5 and 97.5 % points are 21 and 39.
    _, low, high = bootstrap(["a"] * 30 + ["b"] * 70, ["a"] * 100, "exact_match", samples=4000)
    assert (low, high) == (pytest.approx(21, abs=1), pytest.approx(39, abs=1))


def test_groups_are_drawn_as_wholes():
    # One group holds everything: every resample is the corpus itself.
    whole = score(OURS, THEIRS)["chrf"].value
    assert bootstrap(OURS, THEIRS, "chrf", groups=["a"] * 5)[1:] == pytest.approx((whole, whole))
    # Two groups of 50 equal items: only 0, 50 and 100 can come; items alone would stay near 50.
    ours, theirs, groups = ["a"] * 50 + ["b"] * 50, ["a"] * 100, [("r", i // 50) for i in range(100)]
    assert bootstrap(ours, theirs, "exact_match", groups=groups) == (50.0, 0.0, 100.0)
    assert bootstrap(ours, theirs, "exact_match")[1] > 35
    # A group key per item is no grouping.
    assert bootstrap(OURS, THEIRS, "wer", groups=range(5)) == bootstrap(OURS, THEIRS, "wer")


def test_paired_bootstrap_sees_a_clear_difference_and_none():
    better = THEIRS * 8
    difference, low, high, p = paired_bootstrap(OURS * 8, better, THEIRS * 8, "chrf")
    assert difference == pytest.approx(100 - score(OURS * 8, better, ["chrf"])["chrf"].value)
    assert 0 < low <= difference <= high
    assert p == pytest.approx(2 / 1001)
    assert paired_bootstrap(OURS, OURS, THEIRS, "bleu") == (0.0, 0.0, 0.0, 1.0)


def test_paired_bootstrap_turns_round_and_keeps_pairs_together():
    references = ["a", "b", "c", "d"] * 10
    one = ["a", "x", "c", "d"] * 10
    other = ["x", "b", "c", "x"] * 10
    difference, low, high, p = paired_bootstrap(one, other, references, "exact_match", samples=500)
    assert difference == -25.0
    assert paired_bootstrap(other, one, references, "exact_match", samples=500) == (25.0, -high, -low, p)
    # Whole groups of four: each has the same difference, so every resample has.
    groups = [i // 4 for i in range(40)]
    assert paired_bootstrap(one, other, references, "exact_match", groups=groups)[:3] == (-25.0, -25.0, -25.0)


def test_p_is_uniform_enough_where_systems_do_not_differ():
    generator = np.random.default_rng(0)
    references, small = ["a"] * 60, 0
    for seed in range(60):
        sides = [["a" if right else "b" for right in generator.random(60) < 0.5] for _ in range(2)]
        small += paired_bootstrap(sides[0], sides[1], references, "exact_match", samples=200, seed=seed)[3] < 0.05
    assert small <= 9  # 3 expected; 10 or more has probability 0.001


# Two-sided points of Student's t from the usual table.
@pytest.mark.parametrize(
    ("level", "freedom", "point"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 3, 3.18245),
        (0.95, 4, 2.77645),
        (0.95, 9, 2.26216),
        (0.95, 30, 2.04227),
        (0.99, 1, 63.6567),
        (0.99, 5, 4.03214),
        (0.90, 7, 1.89458),
        (0.999, 1, 636.619),
        (0.999, 10, 4.58689),
        (0.95, 100_000, 1.95999),
        (0.50, 1, 1.0),
    ],
)
def test_student_points_against_the_table(level, freedom, point):
    assert student_quantile(level, freedom) == pytest.approx(point, rel=5e-6)


def test_mean_interval():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.30265 / np.sqrt(3), rel=1e-5))
    assert mean_interval([7.0, 7.0, 7.0]) == (7.0, 0.0)
    for bad in ([1.0], [], [1.0, float("nan")]):
        with pytest.raises(DataError, match="at least 2 finite"):
            mean_interval(bad)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(METRICS)), PAIRS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_a_copy_is_perfect(name, pairs, random):
    ours, theirs = [list(side) for side in zip(*pairs, strict=True)]
    shuffled = random.sample(pairs, len(pairs))
    ours_again, theirs_again = [list(side) for side in zip(*shuffled, strict=True)]
    value = score(ours, theirs, [name])[name].value
    assert value == pytest.approx(score(ours_again, theirs_again, [name])[name].value)
    assert value >= 0.0
    assert value <= 100.0 + 1e-9 or name in ("wer", "cer")
    spelled = [text + " menu press one two" for text in theirs]  # long enough for a 4-gram, some word for ROUGE
    perfect = score(spelled, spelled, [name])[name].value
    assert perfect == pytest.approx(0.0 if name in ("wer", "cer") else 100.0)


def test_an_empty_prediction_is_worth_nothing():
    values = {name: one.value for name, one in score([""], ["a b"], list(METRICS)).items()}
    assert values == {name: 100.0 if name in ("wer", "cer") else 0.0 for name in METRICS}


def test_refusals():
    with pytest.raises(DataError, match="Reference 1 is empty"):
        score(["a", "b"], ["a", " "])
    with pytest.raises(DataError, match="1 predictions came for 2"):
        score(["a"], ["a", "b"])
    with pytest.raises(DataError, match="at least 1"):
        score([], [])
    with pytest.raises(DataError, match="Item 0 has prediction None"):
        score([None], ["a"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="Allowed are bleu"):
        score(["a"], ["a"], ["blue"])
    with pytest.raises(DataError, match="2 group keys came for 1"):
        bootstrap(["a"], ["a"], "bleu", groups=["a", "b"])
    with pytest.raises(ConfigError, match="allowed is 1 or more"):
        bootstrap(["a"], ["a"], "bleu", samples=0)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            bootstrap(["a"], ["a"], "bleu", level=level)
        with pytest.raises(ConfigError, match="between 0 and 1"):
            mean_interval([1.0, 2.0], level=level)


# -- several passes ----------------------------------------------------------------------------------------------------
def _scored(name, passes, references):
    return Scored(metric(name).total, [statistics(metric(name), texts, references) for texts in passes])


def test_passes_are_averaged_and_drawn_together():
    references = ["a", "b", "c", "d"]
    one, two = ["a", "b", "x", "x"], ["a", "b", "c", "x"]
    scored = _scored("exact_match", [one, two], references)
    assert (scored.values(), scored.value()) == ([50.0, 75.0], 62.5)
    # Every pass right or wrong on the same items: two passes are as sure as one, not surer.
    assert (
        _scored("exact_match", [one, one], references).interval()
        == _scored("exact_match", [one], references).interval()
    )
    assert scored.interval(groups=["x"] * 4) == (62.5, 62.5)
    other = _scored("exact_match", [one], references)
    difference, low, high, p = scored.against(other)
    assert difference == 12.5
    assert low <= difference <= high
    assert p <= 1.0
    assert other.against(other) == (0.0, 0.0, 0.0, 1.0)


# -- metrics with data or a model --------------------------------------------------------------------------------------
def test_meteor_is_that_of_nltk(tmp_path):
    folder = write_wordnet(tmp_path / "dict")
    paths = {"meteor": str(folder)}
    # Three of three words match (car by synonym) in one chunk: F = 1, penalty 0.5 (1/3)^3.
    got = score(["the Auto stops"], ["the car stops"], ["meteor"], paths=paths)["meteor"]
    assert got.value == pytest.approx(100 * (1 - 0.5 / 27))
    # One match of two and three words: P 1/2, R 1/3, F = P R / (0.9 P + 0.1 R), penalty 0.5.
    precision, recall = 1 / 2, 1 / 3
    value = precision * recall / (0.9 * precision + 0.1 * recall) * 0.5
    assert score(["car runs"], ["an auto stops"], ["meteor"], paths=paths)["meteor"].value == pytest.approx(100 * value)
    assert score(["stopped"], ["stops"], ["meteor"], paths=paths)["meteor"].value == pytest.approx(50)  # by their stem
    # nltk looks synonyms up by their stems: "automobil" is in no dictionary.
    assert score(["automobile"], ["car"], ["meteor"], paths=paths)["meteor"].value == 0.0
    assert score(["bus"], ["car"], ["meteor"], paths=paths)["meteor"].value == 0.0
    assert score([""], ["car"], ["meteor"], paths=paths)["meteor"].value == 0.0
    assert "|stemmer:porter|" in got.signature
    assert "|wordnet:3.0#" in got.signature
    ours = [OURS[i] for i in (0, 1, 3)]
    theirs = [THEIRS[i] for i in (0, 1, 3)]
    wordnet, _ = model_metrics._wordnet(str(folder))
    tokens = [NLTKWordTokenizer().tokenize(text) for text in [*ours, *theirs]]
    each = [single_meteor_score(r, p, wordnet=wordnet) for p, r in zip(tokens[:3], tokens[3:], strict=True)]
    assert score(ours, theirs, ["meteor"], paths=paths)["meteor"].value == pytest.approx(100 * np.mean(each))


def test_meteor_without_wordnet_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"nltk.downloader wordnet.*--metric-path meteor=DIR"):
        metric("meteor")
    with pytest.raises(ConfigError, match=r"has no complete WordNet: data.adj"):
        metric("meteor", {"meteor": str(tmp_path)})
    folder = write_wordnet(tmp_path / "wordnet")
    assert metric("meteor", {"meteor": str(tmp_path)}).is_kept  # the folder above will do
    (tmp_path / "corpora").mkdir()
    folder.rename(tmp_path / "corpora/wordnet")
    model_metrics._build_once.cache_clear()
    assert metric("meteor").is_kept  # where nltk itself looks


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random BERT of three layers: for equality with the reference package, its scores mean nothing."""
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] press one two to leave the menu now you have new messages . hello".split()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def test_bertscore_is_that_of_bert_score(bert):
    bert_score = pytest.importorskip("bert_score", reason='pip install "leaf-speech[bertscore]"')
    paths = {"bertscore": f"{bert}:2"}
    ours, theirs = (
        ["press two now", "you have messages", ""],
        ["press one to leave", "you have new messages .", "hello"],
    )
    found = metric("bertscore", paths)
    values = statistics(found, ours, theirs)[:, 0]
    f1 = bert_score.score(ours[:2], theirs[:2], model_type=str(bert), num_layers=2)[2]
    assert values.tolist() == [*f1.double().tolist(), 0.0]  # the package itself fails on an empty text here
    got = score(ours, theirs, ["bertscore"], paths=paths)["bertscore"]
    assert got.value == pytest.approx(100 * values.mean())
    assert re.search(r"bertscore\|f1\|model:bert0#[0-9a-f]{8}\|layer:2\|idf:no\|rescale:no\|case:mixed", got.signature)
    assert str(bert.parent) not in got.signature
    with pytest.raises(ConfigError, match="cannot take layer 9 of the model google/electra-small-generator"):
        metric("bertscore", {"bertscore": "google/electra-small-generator"})  # known by its whole name; not there
    with pytest.raises(ConfigError, match="knows no layer"):
        metric("bertscore", {"bertscore": str(bert)})
    with pytest.raises(ConfigError, match="cannot take layer 9"):
        metric("bertscore", {"bertscore": f"{bert}:9"})


def test_bertscore_puts_a_space_before_the_first_word_of_roberta(tmp_path):
    """As bert-score does with transformers 4; with 5 it asks in vain, and "press" is another token than " press"."""
    bert_score = pytest.importorskip("bert_score", reason='pip install "leaf-speech[bertscore]"')
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = BpeTrainer(special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(["press one", "press two"] * 3, trainer)
    learned = json.loads(made.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in learned["merges"]]
    tokenizer = RobertaTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(tmp_path)
    ours, theirs = ["press one"], ["press two"]
    got = statistics(metric("bertscore", {"bertscore": f"{tmp_path}:2"}), ours, theirs)[0, 0]
    options = {"model_type": str(tmp_path), "num_layers": 2}
    without = bert_score.score(ours, theirs, **options)[2].item()
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:  # the tokens that it means to have
        spaced = RobertaTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
        patched.setattr(
            bert_score.score.__globals__["get_tokenizer"].__globals__["AutoTokenizer"],
            "from_pretrained",
            lambda *arguments, **options: spaced,
        )
        assert spaced.tokenize("press one")[0] == "Ġpress"
        meant = bert_score.score(ours, theirs, **options)[2].item()
    assert got == meant
    assert got != without


def test_bertscore_without_a_model_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"needs a model.*bertscore=DIR:17"):
        metric("bertscore")


COMET = """#!{python}
import json, sys
arguments = [a for a in sys.argv[1:] if a != "--quiet"]
given = dict(zip(arguments[::2], arguments[1::2]))
sides = [open(given[key], encoding="utf-8").read().splitlines() for key in ("-s", "-t", "-r")]
if "fail" in sides[1]:
    sys.exit("the checkpoint does not load")
rows = [dict(src=s, mt=t, ref=r, COMET=0.5 + 0.25 * (t == r)) for s, t, r in zip(*sides)]
json.dump({{given["-t"]: rows}}, open(given["--to_json"], "w"))
"""


def test_comet_calls_its_own_program(tmp_path):
    """The program here only speaks comet-score's command line: unbabel-comet itself cannot be installed beside leaf."""
    program = tmp_path / "comet-score"
    program.write_text(COMET.format(python=sys.executable))
    program.chmod(0o755)
    (tmp_path / "model.ckpt").write_text("weights")
    paths = {"comet": str(tmp_path / "model.ckpt"), "comet-score": str(program)}
    sources = ["un", "deux"]
    got = score(["one", "two"], ["one", "too"], ["comet"], sources=sources, paths=paths)["comet"]
    assert got.value == 62.5
    assert re.fullmatch(r"comet\|model:model.ckpt#[0-9a-f]{8}\|scale:100\|case:mixed", got.signature)
    with pytest.raises(DataError, match="reads what was said"):
        score(["one"], ["one"], ["comet"], paths=paths)
    with pytest.raises(ConfigError, match="ended with code 1: the checkpoint does not load"):
        score(["fail"], ["one"], ["comet"], sources=["un"], paths=paths)
    with pytest.raises(ConfigError, match=r"model.ckpt does not exist"):
        metric("comet", {**paths, "comet": str(tmp_path / "no/model.ckpt")})
    with pytest.raises(ConfigError, match=r"pip install unbabel-comet.*comet-score=comet/bin"):
        metric("comet", {**paths, "comet-score": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="needs a checkpoint"):
        metric("comet")


def test_exact_match_with_punctuation_is_equality_as_in_the_published_code():
    ours, theirs = ["It is  Monday.", "it is Monday.", "It is Monday"], ["It is Monday."] * 3
    name = "exact_match:punctuation=yes"
    values = {lowercase: score(ours, theirs, [name], lowercase=lowercase)[name] for lowercase in (False, True)}
    assert values[False].value == pytest.approx(100 / 3)
    assert values[True].value == pytest.approx(200 / 3)
    assert values[False].signature.startswith("exact_match|punctuation:yes|case:mixed|")
    assert score(ours, theirs, ["exact_match"])["exact_match"].value == 100.0
    with pytest.raises(ConfigError, match="allowed are yes and no"):
        score(ours, theirs, ["exact_match:punctuation=maybe"])


def test_bleu_may_fold_case_by_itself():
    folded = score(OURS, THEIRS, ["bleu:lowercase=yes", "bleu"])
    plain = score(["PRESS ONE to leave the menu."], THEIRS[:1], ["bleu:lowercase=yes", "bleu"])
    assert plain["bleu:lowercase=yes"].value == pytest.approx(100.0)
    assert plain["bleu"].value < 70
    assert "case:lc" in folded["bleu:lowercase=yes"].signature
    assert folded["bleu:lowercase=yes"].value == score(OURS, THEIRS, ["bleu"], lowercase=True)["bleu"].value

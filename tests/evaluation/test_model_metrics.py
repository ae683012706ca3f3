"""Metrics that need data, a model or a program: METEOR, BERTScore and COMET."""

import json
import re
import sys
from typing import Any

import nltk
import numpy as np
import pytest
import torch
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import single_meteor_score
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from leaf.errors import ConfigError, DataError
from leaf.evaluation import model_metrics
from leaf.evaluation.registry import metric, score, statistics
from tests.helpers.answers import OURS, THEIRS
from tests.helpers.wordnet import write_wordnet


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
    bert_score = pytest.importorskip("bert_score", reason='pip install ".[bertscore]"')
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
    bert_score = pytest.importorskip("bert_score", reason='pip install ".[bertscore]"')
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

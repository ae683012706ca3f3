"""Metrics that need more than this package: METEOR (WordNet), BERTScore (a model), COMET (its own program and model).

None of them downloads anything unasked, and none is left out in silence: what is missing is an error that says how to
get it. Their statistics per item are kept beside the predictions, so that a comparison needs neither data nor model.
"""

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from leaf.errors import ConfigError
from leaf.evaluation.bootstrap import Metric, percentage
from leaf.files import file_sha256

# The key of a path that is no metric's: the program that computes COMET.
COMET_PROGRAM = "comet-score"
_WORDNET_FILES = tuple(f"{kind}.{part}" for kind in ("data", "index") for part in ("adj", "adv", "noun", "verb"))
_WORDNET_FILES += tuple(f"{part}.exc" for part in ("adj", "adv", "noun", "verb"))
_GET_WORDNET = (
    "Get it with `python -m nltk.downloader wordnet` and unpack the wordnet.zip that it leaves, or name a folder that "
    "holds WordNet's files: `--metric-path meteor=DIR`. Debian's wordnet-base puts them into /usr/share/wordnet."
)


def build(name: str, paths: Mapping[str, str]) -> Metric:
    """Return a metric of `BUILDERS`, made once for the same paths.

    Raises:
        ConfigError: its package, data, model or program is missing.
    """
    return _built(name, paths.get(name), paths.get(COMET_PROGRAM))


@lru_cache(maxsize=8)
def _built(name: str, path: str | None, program: str | None) -> Metric:
    return BUILDERS[name](path, program)


# -- METEOR ------------------------------------------------------------------------------------------------------------
def _meteor(path: str | None, program: str | None) -> Metric:
    """Define METEOR as nltk computes it: exact, Porter-stem and WordNet-synonym matches, α 0.9, β 3, γ 0.5; a mean.

    Words are nltk's Treebank tokens (no sentence splitter, so no further data), lower-cased by METEOR itself.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    wordnet, version = _wordnet(path)
    tokenizer, stemmer = NLTKWordTokenizer(), PorterStemmer()

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        pairs = [[tokenizer.tokenize(text) for text in pair] for pair in zip(references, predictions, strict=True)]
        return _values([single_meteor_score(r, p, stemmer=stemmer, wordnet=wordnet) for r, p in pairs])

    signature = f"meteor|tok:treebank|stemmer:porter|a:0.9|b:3|g:0.5|wordnet:{version}|case:lc|nltk:{_version('nltk')}"
    return Metric(items, percentage, lambda lowercase: signature, is_kept=True)


def _wordnet(path: str | None) -> tuple[Any, str]:
    """Return nltk's WordNet reader and its version with a checksum of the files."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        """Read a bare WordNet folder: without the names of lexicographer files and older versions METEOR never asks.

        Files are read into memory whole, as nltk would never close them.
        """

        def open(self, file: str) -> Any:
            if not (Path(str(self.root)) / file).is_file():
                return StringIO("".join(f"{i:02}\tfile{i}\t0\n" for i in range(45)))
            with super().open(file) as stream:
                return StringIO(str(stream.read()))

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    if path is None:
        found = _nltk_wordnet()
    else:
        given = Path(path).expanduser()
        found = next((f for f in (given, given / "corpora/wordnet", given / "wordnet") if _is_wordnet(f)), None)
        if found is None:
            missing = ", ".join(name for name in _WORDNET_FILES if not (given / name).is_file())
            raise ConfigError(f"{path} does not hold WordNet: {missing} missing. {_GET_WORDNET}")
    found = found.resolve()
    if str(found) not in nltk.data.path:
        nltk.data.path.append(str(found))  # nltk reads from folders on this list only
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")  # METEOR asks for English only
        reader = Reader(str(found), None)
    digest = sha256(b"".join(sha256((found / name).read_bytes()).digest() for name in _WORDNET_FILES)).hexdigest()
    return reader, f"{reader.get_version()}#{digest[:8]}"


def _nltk_wordnet() -> Path:
    """Return where nltk has WordNet, unpacked."""
    import nltk

    for folder in nltk.data.path:
        found = Path(folder) / "corpora" / "wordnet"
        if _is_wordnet(found):
            return found
        if found.with_suffix(".zip").is_file():
            raise ConfigError(f"METEOR reads WordNet unpacked; unzip {found.with_suffix('.zip')} where it lies.")
    raise ConfigError(f"METEOR needs WordNet, which nltk does not have here. {_GET_WORDNET}")


def _is_wordnet(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _WORDNET_FILES)


# -- BERTScore ---------------------------------------------------------------------------------------------------------
def _bertscore(path: str | None, program: str | None) -> Metric:
    """Define BERTScore's F1 (Zhang et al. 2020) as bert-score computes it: no idf weights, no rescaling; a mean.

    An empty prediction scores 0, as there.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    if path is None:
        raise ConfigError(
            "BERTScore needs a model. Name a folder with one, and its layer: `--metric-path bertscore=DIR:17`, or a "
            "model of the hub, `--metric-path bertscore=roberta-large`, which is then fetched if it is not there."
        )
    try:
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'BERTScore needs a package that is not there ({error.name}): pip install "leaf-speech[bertscore]".'
        ) from error
    name, colon, layer = path.rpartition(":")
    if not colon or not layer.isdigit():
        name, layer = path, str(model2layers.get(path, model2layers.get(Path(path).name, "")))
    if not layer:
        raise ConfigError(
            f"BERTScore knows no layer for the model {path}; give it: `--metric-path bertscore={path}:N`."
        )
    try:
        scorer: Any = BERTScorer(model_type=name, num_layers=int(layer), idf=False)
    except (OSError, ValueError, AssertionError) as error:
        raise ConfigError(f"BERTScore cannot take layer {layer} of the model {name}: {error}") from error
    if isinstance(scorer._tokenizer, RobertaTokenizer | GPT2Tokenizer):
        # bert-score asks for a space before the first word in every call, which transformers 5 ignores there.
        scorer._tokenizer = AutoTokenizer.from_pretrained(name, add_prefix_space=True)
    if scorer._tokenizer.model_max_length > 1_000_000:
        raise ConfigError(
            f"The tokenizer of {name} does not say how long a text may be. Set model_max_length in its "
            "tokenizer_config.json."
        )

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        values = np.zeros(len(predictions))
        real = [i for i, text in enumerate(predictions) if text.strip()]
        if real:
            f1 = scorer.score([predictions[i] for i in real], [references[i] for i in real])[2]
            values[real] = f1.numpy()
        return _values(values)

    settings = f"model:{Path(name).name}{_weights(Path(name))}|layer:{layer}|idf:no|rescale:no"
    versions = f"bert-score:{_version('bert-score')}|transformers:{_version('transformers')}"

    def signature(lowercase: bool) -> str:
        return f"bertscore|f1|{settings}|case:{'lc' if lowercase else 'mixed'}|{versions}"

    return Metric(items, percentage, signature, is_kept=True)


def _weights(folder: Path) -> str:
    """Return a short checksum of the weights in a folder; nothing for a name of the hub."""
    files = sorted(f for f in folder.glob("*") if f.suffix in (".safetensors", ".bin")) if folder.is_dir() else []
    return f"#{sha256(b''.join(file_sha256(f).encode() for f in files)).hexdigest()[:8]}" if files else ""


# -- COMET -------------------------------------------------------------------------------------------------------------
def _comet(path: str | None, program: str | None) -> Metric:
    """Define COMET as the program comet-score computes it from source, prediction and reference: 100 times the mean.

    unbabel-comet pins packages older than leaf needs, so it lives in an environment of its own and is called there.
    """
    if path is None:
        raise ConfigError(
            "COMET needs a checkpoint: `--metric-path comet=DIR/checkpoints/model.ckpt`, or a name that comet-score "
            "fetches itself, as `--metric-path comet=Unbabel/wmt22-comet-da`."
        )
    command = shutil.which(program or COMET_PROGRAM)
    if command is None:
        raise ConfigError(
            f"COMET needs the program {program or COMET_PROGRAM}, which is not there. It cannot be installed beside "
            "leaf (unbabel-comet pins older packages): make another environment, `python -m venv comet && "
            "comet/bin/pip install unbabel-comet 'setuptools<81'`, and name it: "
            f"`--metric-path {COMET_PROGRAM}=comet/bin/comet-score`."
        )
    if path.endswith(".ckpt") and not Path(path).is_file():
        raise ConfigError(f"The COMET checkpoint {path} is not there.")

    def items(predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> np.ndarray:
        return _values(_run_comet(command, path, sources, predictions, references))

    local = Path(path).is_file()
    named = f"model:{Path(path).name}#{file_sha256(Path(path))[:8]}" if local else f"model:{path}"

    def signature(lowercase: bool) -> str:
        return f"comet|{named}|scale:100|case:{'lc' if lowercase else 'mixed'}"

    return Metric(items, percentage, signature, needs_source=True, is_kept=True)


def _run_comet(
    command: str, model: str, sources: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Call comet-score on three files of lines and return its score per line."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        files = {"-s": sources, "-t": predictions, "-r": references}
        arguments = [command, "--model", model, "--gpus", str(int(torch.cuda.is_available())), "--quiet"]
        for option, lines in files.items():
            file = Path(folder) / f"{option[1]}.txt"
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            arguments += [option, str(file)]
        result = Path(folder) / "scores.json"
        # Python settings of this environment are none of the other one's.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        ran = subprocess.run(
            [*arguments, "--to_json", str(result)], capture_output=True, text=True, env=environment, check=False
        )
        if ran.returncode or not result.is_file():
            last = " ".join(ran.stderr.strip().splitlines()[-3:])
            raise ConfigError(f"{command} ended with code {ran.returncode}: {last}")
        rows = next(iter(json.loads(result.read_text(encoding="utf-8")).values()))
    return [float(row["COMET"]) for row in rows]


# -- shared ------------------------------------------------------------------------------------------------------------
def _values(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return (items, 2) statistics of a mean: each value and 1."""
    array = np.asarray(values, dtype=np.float64)
    return np.stack([array, np.ones_like(array)], axis=1)


def _version(package: str) -> str:
    return metadata.version(package)


BUILDERS: dict[str, Callable[[str | None, str | None], Metric]] = {
    "meteor": _meteor,
    "bertscore": _bertscore,
    "comet": _comet,
}

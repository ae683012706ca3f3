"""Metrics that need more than this package: METEOR (WordNet), BERTScore (a model), COMET (its own program and model).

None of them downloads anything without being asked, and none is left out silently: where something is missing, an
error says how to get it. Their statistics per item are kept beside the predictions, so that a comparison needs neither
data nor model.
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

from leaf.errors import ConfigError, install_extra
from leaf.evaluation.bootstrap import Metric, percentage
from leaf.files import file_mark, file_sha256

# Of the paths, this one belongs to no metric: it is the program that computes COMET.
COMET_PROGRAM = "comet-score"
_WORDNET_FILES = tuple(f"{kind}.{part}" for kind in ("data", "index") for part in ("adj", "adv", "noun", "verb"))
_WORDNET_FILES += tuple(f"{part}.exc" for part in ("adj", "adv", "noun", "verb"))
_GET_WORDNET = (
    "Get it with `python -m nltk.downloader wordnet` and unpack its wordnet.zip, or name a folder with the files, "
    "`--metric-path meteor=DIR`. Debian's wordnet-base puts them into /usr/share/wordnet."
)


def build(name: str, paths: Mapping[str, str]) -> Metric:
    """Build a metric of `BUILDERS`, once for the same paths.

    Raises:
        ConfigError: its package, data, model or program is missing.
    """
    return _build_once(name, paths.get(name), paths.get(COMET_PROGRAM))


@lru_cache(maxsize=8)
def _build_once(name: str, path: str | None, program: str | None) -> Metric:
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
        return _mean_statistics([single_meteor_score(r, p, stemmer=stemmer, wordnet=wordnet) for r, p in pairs])

    signature = f"meteor|tok:treebank|stemmer:porter|a:0.9|b:3|g:0.5|wordnet:{version}|case:lc|nltk:{_version('nltk')}"
    return Metric(items, percentage, lambda lowercase: signature, is_kept=True)


def _wordnet(path: str | None) -> tuple[Any, str]:
    """Open WordNet: nltk's reader, and its version with a checksum of the files."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        """Reads a bare WordNet folder, without the lexicographer files and older versions that METEOR never needs.

        Files are read into memory whole, because nltk would never close them.
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
            raise ConfigError(f"{path} has no complete WordNet: {missing} missing. {_GET_WORDNET}")
    found = found.resolve()
    if str(found) not in nltk.data.path:
        nltk.data.path.append(str(found))  # nltk reads from folders on this list only
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")  # METEOR asks for English only
        reader = Reader(str(found), None)
    digest = sha256(b"".join(sha256((found / name).read_bytes()).digest() for name in _WORDNET_FILES)).hexdigest()
    return reader, f"{reader.get_version()}#{digest[:8]}"


def _nltk_wordnet() -> Path:
    """Find nltk's own WordNet, unpacked."""
    import nltk

    for folder in nltk.data.path:
        found = Path(folder) / "corpora" / "wordnet"
        if _is_wordnet(found):
            return found
        if found.with_suffix(".zip").is_file():
            raise ConfigError(f"METEOR reads WordNet unpacked; unzip {found.with_suffix('.zip')} in its folder.")
    raise ConfigError(f"METEOR needs WordNet, which nltk does not have here. {_GET_WORDNET}")


def _is_wordnet(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _WORDNET_FILES)


# -- BERTScore ---------------------------------------------------------------------------------------------------------
def _bertscore(path: str | None, program: str | None) -> Metric:
    """Define BERTScore's F1 (Zhang et al. 2020) as bert-score computes it: no idf weights, no rescaling; a mean.

    An empty prediction scores 0, as it does there.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    if path is None:
        raise ConfigError(
            "BERTScore needs a model. Name a folder with one, and its layer: `--metric-path bertscore=DIR:17`, or a "
            "model of the hub, `--metric-path bertscore=roberta-large`, which is then downloaded where it is missing."
        )
    try:
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"BERTScore needs a package that is not installed ({error.name}): {install_extra('bertscore')}."
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
        # bert-score asks in every call for a space before the first word; transformers 5 ignores that.
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
        return _mean_statistics(values)

    settings = f"model:{Path(name).name}{_weights_checksum(Path(name))}|layer:{layer}|idf:no|rescale:no"
    versions = f"bert-score:{_version('bert-score')}|transformers:{_version('transformers')}"

    def signature(lowercase: bool) -> str:
        return f"bertscore|f1|{settings}|case:{'lc' if lowercase else 'mixed'}|{versions}"

    return Metric(items, percentage, signature, is_kept=True)


def _weights_checksum(folder: Path) -> str:
    """Compute a short checksum of the weights in a folder; "" for a name of the hub."""
    files = sorted(f for f in folder.glob("*") if f.suffix in (".safetensors", ".bin")) if folder.is_dir() else []
    return f"#{sha256(b''.join(file_sha256(f).encode() for f in files)).hexdigest()[:8]}" if files else ""


# -- COMET -------------------------------------------------------------------------------------------------------------
def _comet(path: str | None, program: str | None) -> Metric:
    """Define COMET as the program comet-score computes it from source, prediction and reference: 100 times the mean.

    unbabel-comet pins packages that are older than leaf needs, so it has its own environment and is called there.
    """
    if path is None:
        raise ConfigError(
            "COMET needs a checkpoint: `--metric-path comet=DIR/checkpoints/model.ckpt`, or a name that comet-score "
            "downloads itself, such as `--metric-path comet=Unbabel/wmt22-comet-da`."
        )
    command = shutil.which(program or COMET_PROGRAM)
    if command is None:
        raise ConfigError(
            f"COMET needs the program {program or COMET_PROGRAM}, which is missing. It cannot be installed beside "
            "leaf (unbabel-comet pins older packages). Make another environment, `python -m venv comet && "
            "comet/bin/pip install unbabel-comet 'setuptools<81'`, and name it: "
            f"`--metric-path {COMET_PROGRAM}=comet/bin/comet-score`."
        )
    if path.endswith(".ckpt") and not Path(path).is_file():
        raise ConfigError(f"The COMET checkpoint {path} does not exist.")

    def items(predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> np.ndarray:
        return _mean_statistics(_run_comet(command, path, sources, predictions, references))

    local = Path(path).is_file()
    named = f"model:{file_mark(Path(path))}" if local else f"model:{path}"

    def signature(lowercase: bool) -> str:
        return f"comet|{named}|scale:100|case:{'lc' if lowercase else 'mixed'}"

    return Metric(items, percentage, signature, needs_source=True, is_kept=True)


def _run_comet(
    command: str, model: str, sources: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Run comet-score on three files of lines, and read its score for each line."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        files = {"-s": sources, "-t": predictions, "-r": references}
        arguments = [command, "--model", model, "--gpus", str(int(torch.cuda.is_available())), "--quiet"]
        for option, lines in files.items():
            file = Path(folder) / f"{option[1]}.txt"
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            arguments += [option, str(file)]
        result = Path(folder) / "scores.json"
        # PYTHONPATH and the like are meant for this environment, not for the other one.
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
def _mean_statistics(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Make (items, 2) statistics of a mean: each value and 1."""
    array = np.asarray(values, dtype=np.float64)
    return np.stack([array, np.ones_like(array)], axis=1)


def _version(package: str) -> str:
    return metadata.version(package)


BUILDERS: dict[str, Callable[[str | None, str | None], Metric]] = {
    "meteor": _meteor,
    "bertscore": _bertscore,
    "comet": _comet,
}

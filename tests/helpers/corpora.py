"""What corpora are made of, and one call that prepares them."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from leaf.data.corpora import CORPORA, prepare
from tests.helpers.sound import write


def quiet(*_):
    return None


def run(name, source, target, **options):
    return prepare(name, CORPORA[name], source, target, say=quiet, **options)


def parquet(path, seconds):
    """Write a table of three audio cells as VoiceBench has them: a recording, a broken one and none."""
    file = write(path.parent / "one.wav", seconds)
    data = file.read_bytes()
    file.unlink()
    cell = [{"bytes": data, "path": "a.wav"}, {"bytes": b"RIFFnothing", "path": "b.wav"}, None]
    pq.write_table(pa.table({"audio": cell, "prompt": ["Name a tree.", "Broken", "None"]}), path)


def hub_of(monkeypatch, name, folder):
    """Let addresses of a data set on the hub, which no test can reach, lead to a folder."""

    class Hub(LocalFileSystem):
        protocol = "hf"
        cachable = False

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).replace(f"hf://{name}", str(folder))

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", Hub)

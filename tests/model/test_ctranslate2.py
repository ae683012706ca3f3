"""The file format of CTranslate2: every type, rank and alias is read, and what is damaged is refused."""

import struct

import numpy as np
import pytest

from leaf.errors import ModelError
from leaf.model.ctranslate2 import read_ctranslate2


def ctranslate2_file(arrays, aliases=(), version=6):
    """Write the format by hand; dtype ids are those of CTranslate2."""
    ids = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def text(name):
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", ids[array.dtype.name], array.nbytes) + array.tobytes()
    return data + struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases)


ARRAYS = {
    "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.array(7, dtype=np.int8),
    "c": np.array([-1.5, 2.25], dtype=np.float32),
    "d": np.array([300, -300], dtype=np.int16),
    "e": np.array([70000], dtype=np.int32),
}


def test_reader_returns_every_type_rank_and_alias(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ctranslate2_file(ARRAYS, aliases=[("tied", "a/weight")]))
    read = read_ctranslate2(path)
    assert list(read) == [*ARRAYS, "tied"]
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    np.testing.assert_array_equal(read["tied"], ARRAYS["a/weight"])


@pytest.mark.parametrize("size", [2, 30, 60, -1])
def test_reader_refuses_a_file_that_ends_early(tmp_path, size):
    path = tmp_path / "model.bin"
    path.write_bytes(ctranslate2_file(ARRAYS)[:size])
    with pytest.raises(ModelError, match="is damaged"):
        read_ctranslate2(path)


def test_reader_refuses_another_version(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ctranslate2_file(ARRAYS, version=5))
    with pytest.raises(ModelError, match="version 5; only version 6"):
        read_ctranslate2(path)

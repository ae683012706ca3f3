"""One recording is known by what it holds, whatever it is called and whatever it is packed in."""

import hashlib
import io

import numpy as np
import pytest
import soundfile

from leaf.data import contents
from leaf.data.contents import Contents
from leaf.data.decoding import Encoded
from leaf.data.leaks import check_leakage
from tests.helpers.sound import tone


def sound(level=0.3, seconds=1.0, hz=220.0):
    return (tone(seconds, hz=hz, level=level) * 32767).astype(np.int16)


def row(audio, **columns):
    return {"prompt": "p", "audio": audio, "reference": "r", **columns}


def leaks(train, test):
    return check_leakage({"train": [row(audio) for audio in train], "test": [row(audio) for audio in test]})


@pytest.fixture
def files(tmp_path):
    """Sixty-odd recordings of one length: no two are the same, except for the copies."""
    for i in range(60):
        soundfile.write(tmp_path / f"{i}.wav", sound(0.2 + i / 1000), 16000)
    for name in ("copy.wav", "copy.flac", "copy.aiff"):
        soundfile.write(tmp_path / name, sound(0.2 + 7 / 1000), 16000)
    data, rate = soundfile.read(tmp_path / "7.wav", dtype="int16")
    with soundfile.SoundFile(tmp_path / "tagged.wav", "w", rate, 1) as file:
        file.comment = "another header"
        file.write(data)
    soundfile.write(tmp_path / "near.flac", np.r_[sound(0.2 + 7 / 1000)[:-1], [99]].astype(np.int16), 16000)
    return tmp_path


@pytest.mark.parametrize("name", ["copy.wav", "copy.flac", "copy.aiff", "tagged.wav"])
def test_a_recording_under_another_name_is_found_on_the_other_side(files, name):
    train = [[str(files / f"{i}.wav")] for i in range(40)]
    test = [[str(files / f"{i}.wav")] for i in range(40, 60)]
    assert leaks(train, test) == []
    assert leaks(train, [*test, [str(files / name)]]) == [f"test: the recording {name} is heard in train too, as 7.wav"]
    assert leaks([*train, [str(files / "50.wav"), str(files / name)]], test) == [
        "test: the recording 50.wav is heard in train too"
    ]


def test_one_sample_makes_another_recording(files):
    assert leaks([str(files / "7.wav")], [str(files / "near.flac")]) == []


def test_bytes_and_files_of_one_recording_are_the_same(files):
    data = (files / "copy.flac").read_bytes()
    in_table = {"bytes": data, "path": "audio.wav"}
    (one,) = leaks([str(files / "7.wav")], [in_table])
    assert one == f"test: the recording sha256:{hashlib.sha256(data).hexdigest()} is heard in train too, as 7.wav"
    others = [{"bytes": (files / f"{i}.wav").read_bytes(), "path": "audio.wav"} for i in range(4)]
    assert leaks(others[:2], others[2:]) == []
    assert len(leaks(others[:2], others[1:])) == 1


def test_arrays_are_known_by_their_samples():
    arrays = [{"array": tone(0.5, hz=200 + 10 * i), "sampling_rate": 16000} for i in range(3)]
    assert leaks(arrays[:2], arrays[2:]) == []
    assert len(leaks(arrays[:2], [arrays[2], {**arrays[1], "array": arrays[1]["array"].copy()}])) == 1


@pytest.mark.parametrize("offset", [0.4, 0.5])
def test_stretches_of_one_recording_are_of_one_side_overlapping_or_not(files, offset):
    def part(name, offset, duration):
        return {"path": str(files / name), "offset": offset, "duration": duration}

    assert leaks([part("7.wav", 0, 0.5)], [part("copy.flac", offset, 0.5)]) == [
        f"test: the recording copy.flac#{offset}-{offset + 0.5} is heard in train too, as 7.wav#0.0-0.5"
    ]
    assert len(leaks([str(files / "7.wav")], [part("copy.wav", 0.4, 0.1)])) == 1
    prepared = [row("cut.flac", audio_sources=[f"/a.mp3#{part}"]) for part in ("0.0-1.5", "1.5-1e+16", "2.0-")]
    assert len(check_leakage({"train": prepared[:1], "test": prepared[1:]})) == 2
    assert check_leakage({"train": prepared, "test": [row("other.flac", audio_sources=["/b.mp3#0.0-1.5"])]}) == []


@pytest.mark.parametrize("test", [["8.wav", "7.wav"], ["copy.wav", "9.wav"], ["copy.wav", "8.wav"], ["copy.flac"]])
def test_a_joined_recording_is_of_one_side_in_any_order(files, test):
    train, other = ([str(files / name) for name in names] for names in (["7.wav", "8.wav"], test))
    (one,) = leaks([train], [other])
    assert one.startswith("test: the recording ")
    assert leaks([train], [[str(files / "9.wav"), str(files / "10.wav")]]) == []


def test_rows_that_recombine_recordings_share_them_but_no_utterance(files):
    """As the task asterisk does: four recordings of digits make many numbers."""
    names = [str(files / name) for name in ("7.wav", "8.wav", "copy.wav")]
    train = [row(names[:2], utterance="one two")]
    for audio, found in ((names[1::-1], 0), ([names[2], names[1]], 1), ([*names[:2], names[0]], 0), (names[:1], 1)):
        assert len(check_leakage({"train": train, "test": [row(audio, utterance="another")]})) == found
    assert len(check_leakage({"train": train, "test": [row(names[1::-1], utterance=names[1])]})) == 1


def test_what_cannot_be_read_is_like_nothing_else(files):
    for i in range(2):
        (files / f"broken{i}.flac").write_bytes(b"fLaC" + bytes(100 + i))
    assert leaks([str(files / "gone.wav"), str(files / "broken0.flac")], [str(files / "broken1.flac")]) == []


def test_little_is_hashed_and_less_decoded(files, monkeypatch):
    """Sixty recordings of one length have one size, so all are hashed; whole ones are decoded where pieces agree."""
    counts = {"_digest": 0, "_samples": 0}
    for name in counts:
        function = getattr(contents, name)

        def counted(sound, name=name, function=function):
            counts[name] += sound.duration is None
            return function(sound)

        monkeypatch.setattr(contents, name, counted)
    sounds = [Encoded(str(path)) for path in sorted(files.iterdir())]
    found = Contents([*sounds, *sounds])
    groups: dict[Encoded, set[str]] = {}
    for one in sounds:
        groups.setdefault(found[one], set()).add((one.path or "").rpartition("/")[2])
    same = {"7.wav", "copy.wav", "copy.flac", "copy.aiff", "tagged.wav"}
    assert [group for group in groups.values() if len(group) > 1] == [same]
    sizes = [path.stat().st_size for path in files.iterdir()]
    assert counts["_digest"] == sum(sizes.count(size) > 1 for size in sizes)
    assert counts["_samples"] <= 5


def test_lossy_copies_are_compared_by_their_bytes(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, sound(), 16000, format="OGG", subtype="VORBIS")
    (tmp_path / "a.ogg").write_bytes(file.getvalue())
    (tmp_path / "b.ogg").write_bytes(file.getvalue())
    soundfile.write(tmp_path / "c.wav", sound(), 16000)
    assert len(leaks([str(tmp_path / "a.ogg")], [str(tmp_path / "b.ogg")])) == 1
    assert leaks([str(tmp_path / "a.ogg")], [str(tmp_path / "c.wav")]) == []

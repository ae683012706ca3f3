"""Recordings that a user may hand over: each is read alike, or refused in one sentence that names its row."""

import math

import numpy as np
import pytest
import soundfile

from leaf.data.audio import AudioWarning, load_audio
from leaf.errors import AudioError, DataError, ModelError
from tests.helpers import tiny
from tests.helpers.sound import tone, write


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        ("wav", "PCM_16"),
        ("wav", "PCM_24"),
        ("wav", "FLOAT"),
        ("flac", "PCM_16"),
        ("ogg", "VORBIS"),
        ("ogg", "OPUS"),
        ("mp3", "MPEG_LAYER_III"),
    ],
)
def test_every_encoding_and_rate_is_the_same_sound(tmp_path, rate, suffix, subtype):
    if subtype == "OPUS" and rate not in (8000, 16000, 48000):
        pytest.skip("Opus has no such rate")
    sound = tone(0.5, rate, hz=440)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([sound, sound], axis=1), rate, subtype=subtype)
    got = load_audio(tmp_path / f"a.{suffix}")
    assert got.dtype == np.float32
    assert abs(len(got) - 8000) <= 1
    middle = got[1000:7000]
    assert 0.27 < np.abs(middle).max() < 0.33
    assert np.abs(np.fft.rfft(middle * np.hanning(6000))).argmax() == round(440 * 6000 / 16000)


def named(tmp_path, kind):
    """Write a recording that is poor in one way and return its path."""
    file = tmp_path / "poor.wav"
    match kind:
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("this is a transcript")
        case "cut off in its header":
            write(file, 0.5)
            file.write_bytes(file.read_bytes()[:30])
        case "no samples":
            soundfile.write(file, np.zeros(0), 16000)
        case "0.01 s":
            write(file, 0.01)
        case "silent":
            soundfile.write(file, np.zeros(16000), 16000)
        case "NaN":
            soundfile.write(file, np.full(16000, np.nan), 16000, subtype="FLOAT")
        case "folder":
            file.mkdir()
        case "loop":
            file.symlink_to(file)
        case "an hour":
            soundfile.write(file, np.zeros(3600 * 100), 4000)  # 90 s: the tiny model takes 2
        case "raw":
            file = tmp_path / "poor.raw"
            file.write_bytes(bytes(4000))
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", r"poor\.wav cannot be read: .*Give wav, flac, ogg, mp3 or m4a"),
        ("text", r"poor\.wav cannot be read"),
        ("cut off in its header", r"poor\.wav"),
        ("no samples", "lasts 0.000 s; at least 0.05 s"),
        ("0.01 s", "lasts 0.010 s; at least 0.05 s"),
        ("silent", "is silent; leave the row out"),
        ("NaN", "has NaN or infinite samples; export it again"),
        ("folder", r"poor\.wav is a folder"),
        ("loop", r"poor\.wav cannot be reached \(Too many levels"),
        ("gone", r"poor\.wav does not exist"),
        ("an hour", r"lasts 90\.0 s; this model takes at most 2 s"),
        ("raw", r"poor\.raw cannot be read"),
    ],
)
def test_a_poor_recording_is_refused_with_the_name_of_its_row(policy, tmp_path, kind, message):
    row = {"id": "80000", "prompt": "press one", "audio": [str(named(tmp_path, kind))], "reference": "x"}
    with pytest.raises(AudioError, match=rf"Row '80000': .*{message}") as caught:
        policy.embed([tiny.rows(1)[0], row])
    assert "\n" not in str(caught.value)


def test_an_hour_of_audio_is_refused_before_it_is_decoded(policy, tmp_path, monkeypatch):
    file = tmp_path / "long.flac"
    soundfile.write(file, np.zeros(16000 * 3600, dtype=np.int16), 16000)

    def never(*arguments, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr("leaf.data.audio.decode", never)
    with pytest.raises(AudioError, match=r"lasts 3600\.0 s; this model takes at most 2 s and would cut the rest"):
        policy.embed([{"id": "1", "prompt": "press one", "audio": str(file), "reference": "x"}])


def test_clipped_audio_is_used_and_said(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.clip(tone(0.5, level=5.0), -1, 1), 16000)
    with pytest.warns(AudioWarning, match=r"loud\.wav is clipped: 8\d\.\d% of its samples are at full scale"):
        assert np.abs(load_audio(tmp_path / "loud.wav")).max() <= 1.0


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (None, "carries 0 recordings"),
        (7, "Audio came as 7; give a path"),
        (b"a.wav", "The audio in the table cannot be read"),
        ([None], "give a path"),
        ("", "does not exist|is a folder"),
        ("a\0b.wav", "cannot exist under such a name"),
        ("a" * 5000, "cannot be reached"),
        ({"array": [0.1] * 1600}, "needs 'array' and 'sampling_rate'"),
        ({"array": [0.1] * 1600, "sampling_rate": "16k"}, "sampling_rate '16k'; give a whole number"),
        ({"array": [0.1] * 1600, "sampling_rate": math.nan}, "give a whole number"),
        ({"array": [0.1] * 1600, "sampling_rate": 16}, "sampling rate 16 Hz; allowed are 2000 to 768000"),
        ({"array": [[0.1], [0.1, 0.2]], "sampling_rate": 16000}, "array that is not one"),
        ({"array": ["a", "b"], "sampling_rate": 16000}, "give"),
    ],
)
def test_audio_of_another_kind_is_refused(policy, audio, message):
    with pytest.raises((DataError, ModelError), match=message):
        policy.embed([{"id": "1", "prompt": "press one", "audio": audio, "reference": "x"}])

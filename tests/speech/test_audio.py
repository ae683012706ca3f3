import numpy as np
import pytest
import soundfile

from leaf.errors import AudioError
from leaf.speech.audio import JOIN_PAUSE, load_audio


def tone(rate, seconds=0.5, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave] * channels, axis=1) if channels > 1 else wave


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", None), ("ogg", None)])
def test_files_of_all_kinds_come_out_alike(tmp_path, rate, channels, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate, subtype=subtype)
    wave = load_audio(str(path))
    assert wave.dtype == np.float32
    assert wave.shape == (8000,)
    assert 0.45 < np.abs(wave[1000:7000]).max() < 0.55


def test_arrays_and_integers():
    array = (tone(16000) * 32767).astype(np.int16)
    got = load_audio({"array": array, "sampling_rate": 16000})
    assert np.allclose(got, tone(16000), atol=1e-3)


def test_joined_files_have_a_pause_between(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16000), 16000)
    joined = load_audio([str(path), str(path)])
    pause = round(JOIN_PAUSE * 16000)
    assert len(joined) == 16000 + pause
    assert np.all(joined[8000 : 8000 + pause] == 0)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0), "at least 0.05 s"),
        (tone(16000, 0.01), "at least 0.05 s"),
        (np.zeros(16000), "silent"),
        (np.full(16000, np.nan), "NaN"),
        (np.full(16000, np.inf), "infinite"),
    ],
)
def test_unusable_audio_is_refused(wave, message):
    with pytest.raises(AudioError, match=message):
        load_audio({"array": wave, "sampling_rate": 16000})


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(AudioError, match="does not exist"):
        load_audio(str(tmp_path / "none.wav"))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"broken\.wav cannot be read"):
        load_audio(str(broken))
    with pytest.raises(AudioError, match="empty list"):
        load_audio([])
    with pytest.raises(AudioError, match="needs 'array'"):
        load_audio({"path": "x"})

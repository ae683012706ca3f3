import numpy as np
import pytest
import soundfile

from leaf.data.audio import JOIN_PAUSE, AudioWarning, _Cache, audio_seconds, load_audio
from leaf.errors import AudioError


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


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integers_are_scaled_by_their_range(dtype):
    half = np.full(1600, np.iinfo(dtype).max // 2 + 1, dtype=dtype)
    assert np.array_equal(load_audio({"array": half, "sampling_rate": 16000}), np.full(1600, 0.5, dtype=np.float32))


def test_channels_are_averaged():
    stereo = np.stack([np.full(1600, 0.5), np.full(1600, -0.1)], axis=1)
    assert np.allclose(load_audio({"array": stereo, "sampling_rate": 16000}), 0.2)


def test_overshoot_is_clipped():
    with pytest.warns(AudioWarning, match=r"clipped: 53\.5% of its samples"):
        assert load_audio({"array": 3 * tone(16000), "sampling_rate": 16000}).max() == 1.0
    # An overshoot in fewer than 1 % of the samples is what lossy encodings do: no word about it.
    assert load_audio({"array": np.r_[np.full(50, 1.2), tone(16000, 1.0)], "sampling_rate": 16000}).max() == 1.0


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_resampling_keeps_the_pitch(rate):
    wave = load_audio({"array": tone(rate, 1.0), "sampling_rate": rate})
    assert np.abs(np.fft.rfft(wave[:16000])).argmax() == 440


def test_the_length_is_read_without_decoding(tmp_path):
    for rate in (8000, 22050, 48000):
        path = tmp_path / f"{rate}.flac"
        soundfile.write(path, tone(rate, 0.7), rate)
        assert audio_seconds(str(path)) == pytest.approx(0.7, abs=1e-4)
        assert audio_seconds(path) == pytest.approx(len(load_audio(path)) / 16000, abs=1e-3)
    both = [str(path), str(path)]
    assert audio_seconds(both) == pytest.approx(1.4 + JOIN_PAUSE)
    assert audio_seconds({"array": tone(8000, 2.0, channels=2), "sampling_rate": 8000}) == 2.0
    with pytest.raises(AudioError, match="does not exist"):
        audio_seconds([str(path), str(tmp_path / "none.wav")])
    with pytest.raises(AudioError, match="empty list"):
        audio_seconds([])
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"broken\.wav cannot be read"):
        audio_seconds(str(tmp_path / "broken.wav"))


def test_a_caller_cannot_change_what_the_next_one_gets(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16000), 16000)
    for audio in (str(path), [str(path)]):
        load_audio(audio)[:] = 0
        assert load_audio(audio).max() > 0.4
    soundfile.write(path, 0.5 * tone(16000, 0.25), 16000)
    assert load_audio(str(path)).shape == (4000,)


def test_the_cache_forgets_the_least_recently_used_and_keeps_to_its_size():
    cache = _Cache(limit=8 * 1000)
    for i in range(8):
        cache.put((str(i), 16000, 0, 0), np.zeros(250, dtype=np.float32))
    assert cache.get(("0", 16000, 0, 0)) is not None
    cache.put(("8", 16000, 0, 0), np.zeros(250, dtype=np.float32))
    assert [key[0] for key in cache.waves] == [*"2345670", "8"]
    assert cache.size == sum(wave.nbytes for wave in cache.waves.values()) == 8000
    cache.put(("long", 16000, 0, 0), np.zeros(251, dtype=np.float32))
    assert cache.get(("long", 16000, 0, 0)) is None


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
        (np.r_[tone(16000), np.nan], "NaN"),
        (tone(16000) * 32767, r"peak of 16\d\d\d.*divide 16-bit values by 32768"),
        ((tone(16000) * 32767).astype(np.int64), "int64; give"),
        (tone(16000).astype(complex), "complex128"),
        (tone(16000, channels=2).T, r"looks like \(channels, samples\)"),
        (np.zeros((2, 2, 9000)), "shape"),
        (np.array(0.5), "shape"),
    ],
)
def test_unusable_audio_is_refused(wave, message):
    with pytest.raises(AudioError, match=message):
        load_audio({"array": wave, "sampling_rate": 16000})


def test_sampling_rates_must_be_positive():
    with pytest.raises(AudioError, match="sampling rate 0 Hz"):
        load_audio({"array": tone(16000), "sampling_rate": 0})


@pytest.mark.parametrize(
    ("wave", "message"),
    [(np.zeros(0), "at least 0.05 s"), (np.zeros(16000), "silent"), (np.full(16000, np.nan), "NaN")],
)
def test_unusable_contents_of_files_are_named(tmp_path, wave, message):
    path = tmp_path / "poor.wav"
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    good = tmp_path / "good.wav"
    soundfile.write(good, tone(16000), 16000)
    with pytest.raises(AudioError, match=rf"poor\.wav .*{message}"):
        load_audio([str(good), str(path)])


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(AudioError, match="does not exist"):
        load_audio(str(tmp_path / "none.wav"))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"broken\.wav cannot be read"):
        load_audio(str(broken))
    with pytest.raises(AudioError, match="empty list"):
        load_audio([])
    with pytest.raises(AudioError, match="needs 'array' and 'sampling_rate', or 'bytes' or 'path'"):
        load_audio({"file": "x"})
    with pytest.raises(AudioError, match="file x does not exist"):
        load_audio({"path": "x"})

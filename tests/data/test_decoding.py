"""Recordings of every container are heard in whole, alike from files and from bytes, or refused in one sentence."""

import io
import warnings

import numpy as np
import pytest
import soundfile

from leaf.data.audio import audio_seconds, load_audio
from leaf.data.recordings import audio_of, row_seconds
from leaf.errors import AudioError
from leaf.model.prompts import waveform
from tests.helpers.sound import aac, tone


def speech(seconds, rate=16000):
    """Make a sound that takes few bits at its beginning and many later, as speech after a pause does."""
    noise = np.clip(np.random.default_rng(0).normal(0, 0.2, round(seconds * rate)), -1, 1)
    loud = np.where(np.arange(len(noise)) % (4 * rate) < 2 * rate, 0.001, 1.0)
    return (noise * loud + tone(seconds, rate, level=0.01)).astype(np.float32)


def encoded(wave, **options):
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, **options)
    return file.getvalue()


def without_contents(mp3):
    """Cut off the first frame of an MPEG 2 layer III file, which is the table of contents, as in a file from a pipe."""
    kbits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[mp3[2] >> 4]
    rate = (22050, 24000, 16000)[mp3[2] >> 2 & 3]
    assert b"Xing" in mp3[:200] or b"Info" in mp3[:200]
    return mp3[72 * kbits * 1000 // rate + (mp3[2] >> 1 & 1) :]


VARIABLE = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.3}


@pytest.mark.parametrize("mode", ["VARIABLE", "AVERAGE", "CONSTANT"])
def test_an_mp3_without_a_table_of_contents_is_heard_in_whole(tmp_path, mode):
    whole = encoded(speech(20.0), **{**VARIABLE, "bitrate_mode": mode})
    bare = without_contents(whole)
    path = tmp_path / "bare.mp3"
    path.write_bytes(bare)
    for audio in (str(path), {"bytes": bare, "path": "audio.wav"}, {"path": str(path)}):
        assert audio_seconds(audio) == pytest.approx(20.0, abs=0.15)  # what an encoder adds is not told without it
        assert len(load_audio(audio)) / 16000 == pytest.approx(audio_seconds(audio), abs=0.036)
    assert len(load_audio({"bytes": whole})) == 20 * 16000
    if mode == "VARIABLE":  # the reader of headers alone is wrong, so this test can fail
        assert abs(soundfile.info(path).duration - 20.0) > 5


@pytest.mark.parametrize("filled", [0, 500])
def test_a_tag_before_an_mp3_is_passed_over(filled):
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 16, 0]) + b"\xff\xfb\x90\x00" * 512 + bytes(filled)  # 2,048 bytes
    whole = encoded(speech(4.0), **VARIABLE)
    for data in (whole, without_contents(whole)):
        assert audio_seconds({"bytes": tag + data}) == pytest.approx(4.07, abs=0.08)  # with what the encoder adds
        assert len(load_audio({"bytes": tag + data})) / 16000 == pytest.approx(4.07, abs=0.08)


def m4a(tmp_path, seconds, name="a.m4a"):
    aac(tmp_path / name, seconds)
    return (tmp_path / name).read_bytes()


def test_aac_in_a_table_is_read_as_from_the_disk(tmp_path):
    data = m4a(tmp_path, 2.0)
    on_disk, in_table = load_audio(tmp_path / "a.m4a"), load_audio({"bytes": data, "path": "audio.wav"})
    assert np.array_equal(on_disk, in_table)
    assert len(on_disk) / 16000 == pytest.approx(audio_seconds({"bytes": data}), abs=0.07)
    assert np.abs(np.fft.rfft(on_disk[8000:24000])).argmax() == 220


def test_every_container_and_decoder_gives_the_same_sound(tmp_path):
    wave = (speech(3.0) * 32767).astype(np.int16)
    plain = load_audio({"bytes": encoded(wave, format="WAV")})
    for form in ({"format": "FLAC"}, {"format": "AIFF"}, {"format": "AU"}):
        assert np.array_equal(load_audio({"bytes": encoded(wave, **form)}), plain)
    for form in (VARIABLE | {"compression_level": 0.0}, {"format": "OGG", "subtype": "VORBIS"}):
        lossy = load_audio({"bytes": encoded(wave, **form)})
        assert len(lossy) == len(plain)
        assert np.corrcoef(lossy, plain)[0, 1] > 0.9


def test_a_flac_from_a_pipe_states_no_length_and_is_heard(tmp_path):
    data = bytearray(encoded(speech(2.0), format="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # the number of samples
    assert audio_seconds({"bytes": bytes(data)}) == pytest.approx(2.0)
    assert len(load_audio({"bytes": bytes(data)})) == 32000


def test_a_wav_from_a_pipe_states_no_length_and_is_heard():
    data = bytearray(encoded(speech(2.0), format="WAV"))
    at = data.index(b"data") + 4
    for unknown in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x00\xf0\xff\x7f"):
        data[4:8] = data[at : at + 4] = unknown
        assert len(load_audio({"bytes": bytes(data)})) == 32000


CUT = {
    "wav": {"format": "WAV"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "mp3": VARIABLE,
}


@pytest.mark.parametrize("kind", [*CUT, "m4a"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_recording_that_is_cut_off_is_refused_by_header_and_by_decoding(tmp_path, kind, share):
    data = m4a(tmp_path, 20.0) if kind == "m4a" else encoded(speech(20.0), **CUT[kind])
    cut = data[: int(len(data) * share)]
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(cut)
    for audio in (str(path), {"bytes": cut, "path": None}):
        for look in (audio_seconds, load_audio):
            with pytest.raises(AudioError, match=r"cut off|cannot be read") as caught:
                look(audio)
            assert "\n" not in str(caught.value)
    row = {"id": "7", "prompt": "p", "audio": {"bytes": data, "path": "a"}, "reference": "r"}
    assert row_seconds(row) == pytest.approx(20.0, abs=0.07)


def test_what_states_two_seconds_and_holds_one_says_both():
    data = bytearray(encoded(speech(1.0), format="WAV"))
    at = data.index(b"data") + 4
    data[at : at + 4] = (64000).to_bytes(4, "little")
    with pytest.raises(AudioError, match=r"The audio in the table states 2\.00 s and holds 1\.00 s: it is cut off or"):
        load_audio({"bytes": bytes(data)})


def test_a_packet_that_is_lost_is_refused_for_what_follows_would_be_heard_too_early():
    whole = encoded(speech(20.0), **{**VARIABLE, "bitrate_mode": "CONSTANT"})
    header = whole.index(whole[:2], len(whole) // 2)  # of a frame in the middle
    inside, lost = bytearray(whole), bytearray(whole)
    inside[header + 100 : header + 140] = bytes(40)
    lost[header : header + 200] = bytes(200)
    assert len(load_audio({"bytes": bytes(inside)})) == 20 * 16000  # one frame sounds wrong, in its place
    for stretch in ({}, {"offset": 15.0, "duration": 2.0}):
        with pytest.raises(AudioError, match=r"is damaged after (9|10)\.\d\d s: a packet cannot be decoded\. Copy or"):
            load_audio({"bytes": bytes(lost), **stretch})
    early = {"offset": 5.0, "duration": 2.0}
    assert np.array_equal(load_audio({"bytes": bytes(lost), **early}), load_audio({"bytes": whole, **early}))
    lost[header : header + len(lost) // 20] = bytes(len(lost) // 20)
    with pytest.raises(AudioError, match="damaged"):
        load_audio({"bytes": bytes(lost)})
    tag = b"TAG" + b"title".ljust(125, b"\0")
    assert len(load_audio({"bytes": whole + tag})) == 20 * 16000


ENDED = {"ogg": CUT["ogg"], "opus": {"format": "OGG", "subtype": "OPUS"}, "flac": CUT["flac"]}


@pytest.mark.parametrize("kind", [*ENDED, "m4a"])
def test_of_several_recordings_in_one_file_not_the_first_alone_is_heard(tmp_path, kind):
    data = m4a(tmp_path, 2.0) if kind == "m4a" else encoded(speech(2.0), **ENDED[kind])
    other = m4a(tmp_path, 3.0) if kind == "m4a" else encoded(speech(3.0), **ENDED[kind])
    assert len(load_audio({"bytes": data})) / 16000 == pytest.approx(2.0, abs=0.15)  # AAC pads
    (tmp_path / "two").write_bytes(data + other)
    for audio in ({"bytes": data + data}, str(tmp_path / "two"), {"path": str(tmp_path / "two"), "duration": 1.0}):
        with pytest.raises(AudioError, match=r"two|table") as caught:
            load_audio(audio)
        assert "holds several recordings, one behind the other, and only the first would be" in str(caught.value)
        if kind != "flac":
            with pytest.raises(AudioError, match="holds several recordings"):
                audio_seconds(audio)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_an_ogg_that_is_cut_between_two_pages_is_refused(kind):
    data = encoded(speech(20.0), **ENDED[kind])
    pages = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
    for at in (pages[len(pages) // 2], pages[-1]):
        for look in (audio_seconds, load_audio):
            with pytest.raises(AudioError, match=r"has no last page: it is cut off\. Copy or export it again"):
                look({"bytes": data[:at]})
    assert audio_seconds({"bytes": data + b"TAG" + bytes(125)}) == pytest.approx(20.0)


@pytest.mark.parametrize("kind", ["flac", "wav", "ogg"])
@pytest.mark.parametrize("tags", [1, 2])
def test_a_tag_before_what_is_no_mp3_is_passed_over(tmp_path, kind, tags):
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    data = encoded(speech(2.0), **CUT[kind])
    (tmp_path / "a").write_bytes(tag * tags + data)
    for audio in (str(tmp_path / "a"), {"bytes": tag * tags + data}):
        assert audio_seconds(audio) == pytest.approx(2.0)
        assert np.array_equal(load_audio(audio), load_audio({"bytes": data}))
        part = {"offset": 1.0, "duration": 0.5}
        whole = {"path": audio} if isinstance(audio, str) else audio
        assert np.array_equal(load_audio(whole | part), load_audio({"bytes": data} | part))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '/etc/hostname'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 96\n",
    ],
)
def test_a_playlist_that_calls_itself_a_recording_opens_nothing(tmp_path, text):
    path = tmp_path / "a.m4a"
    path.write_text(text)
    with pytest.raises(AudioError, match="cannot be read"):
        load_audio(path)


def test_the_length_that_a_row_states_is_the_length_of_its_audio():
    row = {"id": "a", "prompt": "p", "audio": {"bytes": encoded(speech(2.0), format="WAV")}, "reference": "r"}
    for same in (2.0, "2.0", 2.04, 1.98, None, "", "about two"):
        assert row_seconds({**row, "seconds": same}) == 2.0
    for other in (2.06, 1.9, 20, "20", 2000.0):
        with pytest.raises(AudioError, match=r"The audio lasts 2\.00 s and the row states "):
            row_seconds({**row, "seconds": other})


def test_the_model_is_given_no_row_that_states_another_length(policy):
    row = {"id": "a", "prompt": "press one", "audio": {"bytes": encoded(speech(1.0), format="WAV")}, "reference": "r"}
    assert len(waveform(policy.family, policy.processor, row | {"seconds": 1.0})) == 16000
    with pytest.raises(AudioError, match=r"Row 'a': The audio lasts 1\.00 s and the row states 2"):
        waveform(policy.family, policy.processor, row | {"seconds": 2.0})


# -- stretches ---------------------------------------------------------------------------------------------------------
def steps(seconds, rate=16000):
    """Make a sound of one pitch in each second, 200 Hz in the first, 300 in the next."""
    return np.concatenate([tone(1.0, rate, hz=200 + 100 * i) for i in range(seconds)])


def pitch(wave):
    return round(np.abs(np.fft.rfft(wave)).argmax() / (len(wave) / 16000))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "array"])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_stretch_is_heard_alone(tmp_path, kind, rate):
    wave = steps(6, rate)
    audio = {"array": wave, "sampling_rate": rate}
    if kind != "array":
        path = tmp_path / f"a.{kind.lower()}"
        soundfile.write(path, wave, rate, format=kind)
        audio = {"path": str(path), "bytes": None}
    for offset in (0, 3, 5):
        got = load_audio({**audio, "offset": offset, "duration": 1.0})
        assert len(got) == 16000
        assert pitch(got) == 200 + 100 * offset
        assert audio_seconds({**audio, "offset": offset, "duration": 1.0}) == pytest.approx(1.0)
    assert len(load_audio({**audio, "offset": 4.5})) == pytest.approx(1.5 * 16000, abs=1)
    row = {"prompt": "p", "reference": "r", "audio": audio, "offset": "2.0", "duration": 2, "seconds": 2}
    assert row_seconds(row) == pytest.approx(2.0)
    assert pitch(load_audio(audio_of(row))[:16000]) == 400


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        ({"offset": 5.0, "duration": 2.0}, r"stretch from 5 to 7 s is not in .*, which lasts 6\.00 s"),
        ({"offset": 6.0}, "is not in"),
        ({"duration": 6.1}, r"stretch from 0 to 6\.1 s is not in"),
        ({"duration": 6000}, "is not in"),
        ({"offset": -1.0}, "offset is -1.0; it says where a recording is heard"),
        ({"duration": 0}, "duration is 0; give seconds above 0"),
        ({"duration": "short"}, "duration is 'short'; it says"),
        ({"offset": float("inf")}, "offset is inf"),
        ({"offset": True}, "offset is True"),
    ],
)
def test_a_stretch_is_inside_its_recording(tmp_path, stretch, message):
    soundfile.write(tmp_path / "a.wav", steps(6), 16000)
    row = {"prompt": "p", "reference": "r", "audio": [str(tmp_path / "a.wav")], **stretch}
    for look in (row_seconds, lambda row: load_audio(audio_of(row))):
        with pytest.raises(AudioError, match=message):
            look(row)


def test_empty_cells_and_rounded_lengths_are_the_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", steps(6), 16000)
    row = {"prompt": "p", "reference": "r", "audio": str(tmp_path / "a.wav")}
    for stretch in ({"offset": None}, {"duration": ""}, {"offset": float("nan"), "duration": None}, {"offset": 0}):
        assert row_seconds({**row, **stretch}) == 6.0
    assert row_seconds({**row, "duration": 6.04}) == 6.0
    with pytest.raises(AudioError, match="2 files of audio; a stretch is of one file"):
        audio_of({**row, "audio": ["a.wav", "b.wav"], "offset": 1.0})


def test_warnings_of_a_decoder_reach_nobody(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio({"bytes": without_contents(encoded(speech(3.0), **VARIABLE))})
    assert capfd.readouterr() == ("", "")

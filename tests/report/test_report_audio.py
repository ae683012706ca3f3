"""Clips of recordings, the store that keeps them within bytes, and the player in a real browser."""

import base64
import io
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect

from leaf.errors import AudioError, ConfigError, DataError
from leaf.report.audio import RATE, ClipStore, Recordings, clip, peaks
from leaf.report.page import Section, assets, page
from tests.helpers.waits import until

DRAW = """
leaf.section("sound", (root, data) => {
  for (const [i, clip] of data.entries()) root.append(leaf.player(clip, `clip ${i}`));
});
"""


def tone(seconds, rate=RATE, hertz=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def given_array(seconds, **options):
    return {"array": tone(seconds, **options), "sampling_rate": options.get("rate", RATE)}


def decoded(made):
    head, _, body = made["src"].partition(",")
    assert head == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(body)))


def sounding(*clips):
    return page("sound", [Section("sound", "Sound", list(clips), (*assets("audio.js"), DRAW), assets("audio.css"))])


def test_a_clip_sounds_as_what_it_was_made_from():
    made = clip({"array": np.stack([tone(2, rate=44100)] * 2, axis=1), "sampling_rate": 44100})
    wave, rate = decoded(made)
    assert (rate, wave.ndim) == (RATE, 1)
    assert len(wave) == 2 * RATE  # the encoder's padding is taken off again
    spectrum = np.abs(np.fft.rfft(wave))
    assert np.argmax(spectrum) / 2 == 440.0  # bins of half a hertz
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)
    assert (made["seconds"], made["kept"], made["joins"]) == (2.0, 2.0, [])
    assert len(made["src"]) < 20_000
    json.dumps(made, allow_nan=False)


def test_peaks_by_hand():
    assert peaks(np.array([0.1, -0.2, 0.0, 0.0, 0.4, 0.3]), 3) == [50, 0, 100]
    assert peaks(np.array([0.0, 0.0, -0.5, 0.25, 0.0]), 2) == [0, 100]  # stretches of 2 and 3


@settings(max_examples=50)
@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=60), st.integers(1, 4))
def test_peaks_of_any_waveform_are_whole_numbers_with_the_loudest_at_100(samples, count):
    wave = np.array([*samples, 0.5], dtype=np.float32)
    found = peaks(wave, count)
    assert len(found) == count
    assert max(found) == 100
    assert min(found) >= 0


def test_joined_recordings_are_one_clip_with_a_mark_where_each_begins(tmp_path):
    names = [str(tmp_path / f"{name}.wav") for name in "abc"]
    for name, seconds in zip(names, (0.5, 0.25, 1.0), strict=True):
        soundfile.write(name, tone(seconds), RATE)
    made = clip(names)
    assert made["seconds"] == 1.87  # and two pauses of 0.06 s
    assert made["joins"] == [0.56, 0.87]


def test_what_does_not_fit_is_cut_at_the_end():
    noise = {"array": np.random.default_rng(0).normal(0, 0.2, 20 * RATE).clip(-0.9, 0.9), "sampling_rate": RATE}
    made = clip(noise, max_bytes=20_000)
    wave, _ = decoded(made)
    assert 15_000 < len(made["src"]) <= 20_000
    assert made["seconds"] == 20.0
    assert 1.0 < made["kept"] < 10.0
    assert len(wave) / RATE == pytest.approx(made["kept"], abs=0.01)
    with pytest.raises(ConfigError, match="holds less than"):
        clip(noise, max_bytes=200)


def test_unusable_audio_is_refused(tmp_path):
    with pytest.raises(AudioError, match="does not exist"):
        clip(str(tmp_path / "none.wav"))


def test_a_store_keeps_to_its_bytes_and_stores_nothing_twice(tmp_path):
    names = [str(tmp_path / f"{i}.wav") for i in range(6)]
    for i, name in enumerate(names):
        soundfile.write(name, tone(1, hertz=300.0 + 100 * i), RATE)
    one = len(clip(names[0])["src"])
    store = ClipStore(max_bytes=int(3.5 * one), clip_bytes=2 * one)
    assert [store.add(name) for name in (names[0], [names[0]], names[1], names[0], names[2])] == [0, 1, 2, 0, None]
    assert store.add(names[0]) == 0
    assert store.add(names[2]) is None  # known
    assert (len(store.clips), store.left_out) == (3, 1)
    assert store.clips[2]["src"] == clip(names[1])["src"]
    assert store.bytes == sum(len(made["src"]) for made in store.clips) <= store.max_bytes
    for hertz in range(100, 121):
        assert store.add(given_array(3, hertz=float(hertz))) is None
    assert store.add(given_array(0.1)) is None  # would fit; after 20 that did not, it is not decoded
    with pytest.raises(AudioError):
        ClipStore().add(str(tmp_path / "none.wav"))


def manifest(folder):
    rows = []
    for i, split in enumerate(("test", "test", "train")):
        soundfile.write(folder / f"{i}.wav", tone(0.5, hertz=300.0 + 100 * i), RATE)
        rows.append({"id": f"row{i}", "prompt": "?", "audio": f"{i}.wav", "reference": f"answer {i}", "split": split})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_recordings_are_found_by_id_and_only_for_the_same_row(tmp_path):
    found = Recordings(str(manifest(tmp_path)))
    assert found.find({"id": "row1"}, "test") == [str(tmp_path / "1.wav")]
    assert found.find({"id": "row1", "prompt": "?", "reference": "answer 1"}, "test") == [str(tmp_path / "1.wav")]
    assert found.find({"id": "row1", "reference": "another"}, "test") is None
    assert found.find({"id": "row9"}, "test") is None
    # Without a split in all that there are: this manifest has no validation rows.
    assert found.find({"id": "row0"}) == [str(tmp_path / "0.wav")]
    assert found.find({"id": "row2"}) == [str(tmp_path / "2.wav")]
    assert found.find({"id": "row9"}) is None
    with pytest.raises(DataError, match="no rows in split 'validation'"):
        found.find({"id": "row0"}, "validation")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Recordings(str(tmp_path / "rows.jsonl")).find({"id": "row0"})
    message = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "?"}]}]
    assert found.find({"id": "row2", "prompt": message, "reference": None}, "train") == [str(tmp_path / "2.wav")]


# -- the player --------------------------------------------------------------------------------------------------------
def test_it_plays_and_one_at_a_time(opened):
    # Long enough not to be over before they are looked at.
    tab = opened(sounding(clip(given_array(20)), clip(given_array(20, hertz=600.0))))
    audio = "document.querySelectorAll('audio')"
    until(tab, f"{audio}[0].duration > 0")
    assert tab.evaluate(f"{audio}[0].duration") == pytest.approx(20.0, abs=0.1)
    first, second = (tab.get_by_role("button", name=f"play clip {i}") for i in (0, 1))
    first.click()
    until(tab, f"{audio}[0].currentTime > 0.1")
    expect(tab.get_by_role("button", name="pause clip 0")).to_have_count(1)
    second.click()
    until(tab, f"{audio}[1].currentTime > 0")
    assert tab.evaluate(f"{audio}[0].paused")
    expect(first).to_have_count(1)
    # Taken out of the page it falls silent.
    tab.evaluate(f"window.kept = {audio}[1], document.querySelectorAll('.player')[1].remove()")
    until(tab, "window.kept.paused")


def test_it_stops_at_its_end_and_starts_again(opened):
    tab = opened(sounding(clip(given_array(0.5))))
    play = tab.get_by_role("button", name="play clip 0")
    play.click()
    until(tab, "document.querySelector('audio').ended")
    expect(tab.locator(".time")).to_have_text("0.5 / 0.5 s")
    play.click()
    until(tab, "(a => !a.paused || a.ended)(document.querySelector('audio'))")
    assert tab.locator(".note").text_content() == ""


def test_keys_and_pointer_seek(opened):
    tab = opened(sounding(clip(given_array(20))))
    until(tab, "document.querySelector('audio').readyState > 0")
    slider = tab.get_by_role("slider", name="position in clip 0")
    slider.focus()

    def at(seconds):
        until(tab, f"Math.abs(document.querySelector('audio').currentTime - {seconds}) < 0.1")
        until(tab, f"Math.abs(document.querySelector('[role=slider]').ariaValueNow - {seconds}) < 0.1")

    assert slider.get_attribute("aria-valuemax") == "20"
    for key, seconds in (("ArrowRight", 1), ("ArrowUp", 2), ("ArrowLeft", 1), ("End", 20), ("Home", 0)):
        tab.keyboard.press(key)
        at(seconds)
    box = slider.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    tab.mouse.down()
    at(10)
    tab.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 5)
    tab.mouse.up()
    at(15)
    tab.mouse.move(box["x"], box["y"] + 5)
    at(15)
    assert tab.locator(".past").evaluate("made => made.style.clipPath").startswith("inset(0")
    slider.focus()
    tab.keyboard.press("Home")
    tab.keyboard.press(" ")
    until(tab, "!document.querySelector('audio').paused")
    tab.keyboard.press(" ")
    until(tab, "document.querySelector('audio').paused")


def test_a_cut_and_a_broken_clip_are_said(opened):
    whole = clip(given_array(1))
    tab = opened(sounding(whole | {"seconds": 90.0}, whole | {"src": "data:audio/mpeg;base64,AAAA"}))
    notes = tab.locator(".note")
    assert notes.nth(0).text_content() == "only the first 1.0 s of 1:30 are in this page"
    until(tab, "document.querySelectorAll('.note')[1].textContent !== ''")
    assert notes.nth(1).text_content() == "this browser cannot play the recording"


def test_the_waveform_follows_the_theme_and_fits_a_phone(opened):
    tab = opened(sounding(clip(given_array(1))), color_scheme="light", viewport={"width": 320, "height": 600})
    stroke = "getComputedStyle(document.querySelector('.rest path')).stroke"
    light = tab.evaluate(stroke)
    tab.locator("#theme").click()
    assert tab.evaluate(stroke) != light
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")

"""What a user may hand over or run into, and the one sentence that comes of it; it goes on where a recipe says so."""

import json
import math
import threading
import time

import numpy as np
import peft
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from leaf.config import LeafConfig, from_dict, load_recipe
from leaf.credit import CREDIT_RULES
from leaf.data import load
from leaf.data.audio import AudioWarning, load_audio
from leaf.errors import AudioError, ConfigError, DataError, ModelError, RewardError, RunError, did_you_mean
from leaf.model.policy import Policy
from leaf.rewards.total import MOST_HANGING, RewardSum
from leaf.runs.skipped import SkippedSteps, diagnose
from leaf.train.records import rollout_statistics
from leaf.train.rollout import unscore_unsampled
from leaf.train.streaks import Streaks
from leaf.train.trainer import LeafTrainer
from tests.helpers import tiny


def wave(seconds=0.5, rate=16000, level=0.3):
    return level * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


@pytest.fixture(scope="module")
def policy():
    return Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))


# -- recordings --------------------------------------------------------------------------------------------------------
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
    tone = wave(rate=rate)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([tone, tone], axis=1), rate, subtype=subtype)
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
            soundfile.write(file, wave(), 16000)
            file.write_bytes(file.read_bytes()[:30])
        case "no samples":
            soundfile.write(file, np.zeros(0), 16000)
        case "0.01 s":
            soundfile.write(file, wave(0.01), 16000)
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
        ("empty", r"poor\.wav cannot be read: .*Give wav, flac, ogg or mp3"),
        ("text", r"poor\.wav cannot be read"),
        ("cut off in its header", r"poor\.wav"),
        ("no samples", "lasts 0.000 s; at least 0.05 s"),
        ("0.01 s", "lasts 0.010 s; at least 0.05 s"),
        ("silent", "is silent; leave the row out"),
        ("NaN", "holds NaN or infinite samples; export it again"),
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

    monkeypatch.setattr(soundfile, "read", never)
    with pytest.raises(AudioError, match=r"lasts 3600\.0 s; this model takes at most 2 s and would cut the rest"):
        policy.embed([{"id": "1", "prompt": "press one", "audio": str(file), "reference": "x"}])


def test_clipped_audio_is_used_and_said(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.clip(wave(level=5.0), -1, 1), 16000)
    with pytest.warns(AudioWarning, match=r"loud\.wav is clipped: 8\d\.\d% of its samples stand at full scale"):
        assert np.abs(load_audio(tmp_path / "loud.wav")).max() <= 1.0


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (None, "carries 0 recordings"),
        (7, "Audio came as 7; give a path"),
        (b"a.wav", "give a path"),
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


# -- prompts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<sound> and <sound>", "has 2 audio placeholders .*exactly one is allowed"),
        ([{"role": "user", "content": "hello"}], "has 0 audio placeholders"),
        ([{"role": "user", "content": [{"type": "audio"}, {"type": "audio"}]}], "has 2 audio placeholders"),
        ([], "A prompt is an empty list"),
        (None, "no prompt"),
        (5, "A prompt is 5; give a string, or a list of messages"),
        ({"role": "user"}, "give a string, or a list"),
        (["hello"], "message is 'hello'; give each a 'role'"),
        ([{"role": "user"}], "give each a 'role' and a 'content'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "its content is a string, or a list of parts"),
        ([{"role": "user", "content": None}], "its content is a string, or a list of parts"),
    ],
)
def test_prompts_that_cannot_be_meant(policy, prompt, message):
    with pytest.raises((DataError, ModelError), match=message):
        policy.embed([{**tiny.rows(1)[0], "prompt": prompt}])


# -- manifests ---------------------------------------------------------------------------------------------------------
def test_a_file_that_is_missing_in_the_last_row_is_found_on_reading(tmp_path):
    soundfile.write(tmp_path / "a.wav", wave(), 16000)
    rows = [{"prompt": "Say", "audio": "a.wav", "reference": str(i), "split": "train"} for i in range(2000)]
    rows[-1]["audio"] = "gone.wav"
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"Row 2000 of data\.jsonl names the audio file .*gone\.wav, which does not"):
        load(str(tmp_path / "data.jsonl"), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "Line 1 of data.jsonl has the key 'prompt' twice"),
        (b'{"prompt": "a\\ud800", "audio": "a.wav", "reference": "x"}', "half a character"),
        (b'{"prompt": "a", "audio": "a.wav", "reference": "x", "note": "\\ud800"}', "half a character"),
        (b'{"prompt": "a", "audio": "a.wav", "reference": "x", "level": 99999999999999999999}', "kinds of values"),
        (b'{"prompt": "a", "audio": "a.wav", "level": ' + b"9" * 5000 + b"}", "Line 1 .* cannot be read"),
        (b'{"a":' * 20_000, "nested too deeply"),
        ('{"prompt": "é"}'.encode("latin-1"), r"not UTF-8 \(byte 12 is 0xe9\)"),
        ('{"prompt": "a"}'.encode("utf-16"), r"not UTF-8 \(byte 0 is 0xff\)"),
        (b'{"prompt": "a", "audio": ".", "reference": "x"}', "which is a folder"),
        (b'{"prompt": "a", "audio": "loop.wav", "reference": "x"}', "which cannot be reached"),
        (b'{"prompt": "a", "audio": "a\\u0000.wav", "reference": "x"}', "cannot exist under such a name"),
    ],
)
def test_broken_manifests_are_named(tmp_path, content, message):
    soundfile.write(tmp_path / "a.wav", wave(), 16000)
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "data.jsonl"), "train")
    assert len(str(caught.value)) < 1000


def test_links_are_followed_and_one_recording_has_one_name(tmp_path):
    (tmp_path / "real").mkdir()
    soundfile.write(tmp_path / "real/a.wav", wave(), 16000)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "b.wav").symlink_to(tmp_path / "real/a.wav")
    names = ["real/a.wav", "linked/a.wav", "b.wav", "./real/../real/a.wav"]
    rows = [{"prompt": "Say", "audio": name, "reference": name, "split": "train"} for name in names]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = load(str(tmp_path / "data.jsonl"), "train")["audio"]
    assert got == [[str((tmp_path / "real/a.wav").resolve())]] * 4


# -- recipes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' stands there twice .* line 2"),
        ("credit_options: {max_boundaries: 1, max_boundaries: 2}", "the key 'max_boundaries' stands there twice"),
        ("seed: &a [*a]", "unfold to more than 10000 values, or without end"),
        ("seed: " + "[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 5000, "a value is not of its type"),
        ("model: 2024-13-45", "month must be in 1..12"),
        ("seed: 4294967296", "from 0 to 4294967295"),
        ("learning_rate: .inf", "finite numbers"),
        ("learning_rate: .nan", "at least 0.0"),
        ("stage: [rl]", "The stage .* is unknown"),
        ("extends: 5", "extends in a.yaml is 5; give the name of a recipe"),
        ('task: "a\\0b"', "NUL and half characters"),
        ("credit_options: {when: 2024-01-01}", "allowed are numbers, text, lists and mappings"),
        ("credit_options: {1: 2}", "names are text"),
        ("reward_timeout: 0", "reward_timeout is 0.0; allowed is a number from 0.001"),
        ("on_reward_error: ignore", "allowed are stop, skip"),
        ("max_skipped_steps: -1", "at least 0"),
        ("learning_rat: 1", "Did you mean 'learning_rate'"),
    ],
)
def test_recipes_that_cannot_be_meant(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_anchors_and_merged_keys_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "rewards: &r [bleu]\nextra_tasks: *r\nstage: sft\nlora_r: 4\n".replace("rewards", "plugins")
    )
    assert load_recipe(tmp_path / "a.yaml").plugins == ["bleu"]
    (tmp_path / "b.yaml").write_text("credit_options:\n  <<: {max_boundaries: 1, min_prefix: 2}\n  max_boundaries: 3\n")
    config = load_recipe(tmp_path / "b.yaml")
    assert isinstance(config, LeafConfig)
    assert config.credit_options == {"max_boundaries": 3, "min_prefix": 2}


def test_the_recipe_and_the_reward_agree_on_time_limits():
    for limit in (0.001, 5.0, 1e6, None):
        config = from_dict({"reward_timeout": limit})
        assert isinstance(config, LeafConfig)
        assert RewardSum(["bleu"], timeout_s=config.reward_timeout).timeout_s == limit


# -- rewards that are left out -----------------------------------------------------------------------------------------
def test_a_failing_function_leaves_its_completions_unscored():
    def broken(completions, kind, **_):
        if kind[0] == "raises":
            raise KeyError("answer")
        return {"text": ["1", 0.5], "few": [1.0], "infinite": [math.inf, 0.5], "none": [None, 0.5]}[kind[0]]

    def good(completions, **_):
        return [0.25, 0.25]

    rewards = RewardSum([broken, good], on_error="skip")
    for kind, totals, failed, said in (
        ("raises", [None, None], [True, True], "broken raised KeyError: 'answer'"),
        ("text", [None, 0.75], [True, False], "broken returned '1' for completion 0"),
        ("infinite", [None, 0.75], [True, False], "broken returned inf for completion 0"),
        ("few", [None, None], [True, True], "broken returned 1 values for 2 completions"),
        ("none", [0.25, 0.75], [False, False], None),  # could not be scored is no failure
    ):
        got = rewards(completions=["a", "b"], kind=[kind] * 2)
        assert [None if math.isnan(total) else total for total in got.totals] == totals
        assert got.failed.tolist() == failed
        assert len(got.messages) == (said is not None)
        assert said is None or said in got.messages[0]
    with pytest.raises(ConfigError, match="allowed are stop and skip"):
        RewardSum(["bleu"], on_error="ignore")


def test_hanging_functions_do_not_pile_up():
    release = threading.Event()

    def slow(**_):
        release.wait(30)
        return [1.0]

    rewards = RewardSum([slow], timeout_s=0.01, on_error="skip")
    for _ in range(MOST_HANGING - 1):
        assert rewards(completions=["a"]).failed.all()
    with pytest.raises(RewardError, match=f"{MOST_HANGING} calls of reward functions still run"):
        rewards(completions=["a"])
    release.set()


def test_values_without_end_are_not_waited_for():
    def forever(**_):
        while True:
            yield 1.0

    with pytest.raises(RewardError, match="returned 3 values for 2 completions"):
        RewardSum([forever])(completions=["a", "b"])


# -- runs --------------------------------------------------------------------------------------------------------------
def letters(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


def trainer(tmp_path, rewards=letters, rows=None, **changes):
    values = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "prompts_per_rollout": 2,
        "num_completions": 3,
        "max_new_tokens": 5,
        "learning_rate": 1e-2,
        "lora_r": 2,
        "lora_dropout": 0.0,
        "device": "cpu",
        "eval_every": 0,
        "save_every": 1,
        "warmup_steps": 3,
    }
    model, processor = tiny.tiny_model()
    said = []
    config = LeafConfig(**(values | changes))
    made = LeafTrainer(model, [rewards], config, rows or tiny.rows(4), None, processor, report=said.append)
    return made, said


def records(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


def poison(made, at, kind):
    """Put NaN into loss or gradient of the first group in the update of some steps."""
    forward, rollout, now = made.policy.forward, made.rollout, [0]

    def at_step(step):
        now[0] = step
        return rollout(step)

    def poisoned(prompts, trees):
        scores = forward(prompts, trees)
        if torch.is_grad_enabled() and now[0] in at:
            if kind == "loss":
                scores.log_probs[0] = scores.log_probs[0] * math.nan
            else:
                scores.log_probs[0].register_hook(lambda gradient: gradient * math.inf)
        return scores

    made.rollout, made.policy.forward = at_step, poisoned


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("at", [{1}, {2, 3}])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace_in_the_weights(tmp_path, kind, at):
    made, said = trainer(tmp_path)
    poison(made, at, kind)
    seen = []
    step = made._optimizer_step

    def watched(part, count):
        before = {name: p.detach().clone() for name, p in made.trained.items()}
        moments = {key: value.clone() for p in made.parameters for key, value in made._optimizer.state[p].items()}
        rate = made.schedule.last_epoch
        stats, taken = step(part, count)
        same = all(torch.equal(before[name], p) for name, p in made.trained.items())
        kept = {key: value for p in made.parameters for key, value in made._optimizer.state[p].items()}
        seen.append((taken, same, taken or all(torch.equal(moments[k], kept[k]) for k in moments)))
        assert made.schedule.last_epoch == rate + 1  # the schedule counts updates, skipped ones too
        assert all(p.grad is None for p in made.parameters)
        return stats, taken

    made._optimizer_step = watched
    made.train()
    assert seen == [(i not in at, i in at, True) for i in (1, 2, 3, 4)]
    got = records(tmp_path)
    assert [record["skipped_steps"] for record in got] == [int(i in at) for i in (1, 2, 3, 4)]
    assert [record["grad_norm"] is None for record in got] == [i in at for i in (1, 2, 3, 4)]
    for file in (tmp_path / "run").rglob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(file).values())
    lines = [line for line in said if "was skipped" in line]
    assert len(lines) == len(at)
    wanted = "the loss is nan" if kind == "loss" else "the gradient norm is"
    assert all(wanted in line and "It comes from row" in line for line in lines)


def test_too_many_skipped_steps_in_a_row_end_the_run_with_a_diagnosis(tmp_path):
    made, _ = trainer(tmp_path, max_skipped_steps=1, max_steps=9)
    poison(made, {2, 4, 5}, "loss")
    wanted = (
        r"2 optimiser steps in a row .*max_skipped_steps.*the loss is nan, with weights in float32\. It comes from "
    )
    with pytest.raises(RunError, match=wanted + r"row '\d', completions 0, 1, 2: .*lower learning_rate"):
        made.train()
    assert [record["skipped_steps"] for record in records(tmp_path)] == [0, 1, 0, 1]
    again, _ = trainer(tmp_path, max_skipped_steps=2, max_steps=9)
    again.train(resume_from_checkpoint=True)  # a recipe may allow more and go on
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 10))


def test_supervised_steps_are_skipped_alike(tmp_path, monkeypatch):
    from leaf.config import SftConfig
    from leaf.runs.directory import RunDirectory
    from leaf.train import sft as stage

    config = SftConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        batch_size=1,
        eval_every=0,
        eval_items=1,
        lora_r=2,
        device="cpu",
        learning_rate=1e-2,
    )
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    plain, calls, said = stage.sft_gradient, [], []

    def poisoned(*arguments):
        calls.append(1)
        return plain(*arguments) * (math.nan if len(calls) == 1 else 1.0)

    monkeypatch.setattr(stage, "sft_gradient", poisoned)
    stage.sft(config, policy, tiny.rows(3), tiny.rows(1), RunDirectory.create(config), said.append)
    assert [record["skipped_steps"] for record in records(tmp_path)] == [1, 0, 0]
    assert [record["loss"] is None for record in records(tmp_path)] == [True, False, False]
    assert any("the loss is nan. It met the rows '" in line for line in said)
    assert all(bool(p.isfinite().all()) for p in policy.parameters())


def test_half_precision_is_advised_against():
    skips = SkippedSteps(0, torch.bfloat16, print)
    with pytest.raises(RunError, match=r"with weights in bfloat16.*use dtype: float32"):
        skips.skipped(1, 0.5, math.inf, "")
    skips = SkippedSteps(1, torch.float32, lambda line: None)
    for _ in range(3):  # a step taken in between
        skips.skipped(1, math.nan, math.nan, "")
        skips.taken()


def test_the_diagnosis_names_row_and_completion(policy):
    rows = tiny.rows(2)
    prompts = policy.embed(rows)
    from leaf.model.sampling import sample

    groups = sample(policy, prompts, num_completions=3, max_new_tokens=4, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    given = [[torch.zeros(group.tokens.shape)] for group in groups]
    ask = [["a", "b"], prompts, groups]
    assert diagnose(policy, *ask, given, parameters) == "None of the rows 'a', 'b' gives it alone and again."
    given[1][0][2, 0] = math.nan
    assert diagnose(policy, *ask, given, parameters) == (
        "It comes from row 'b', completion 2: what the loss is made of is not finite."
    )
    bad = [type(prompts[0])(prompts[0].embeddings * math.inf, prompts[0].is_audio), prompts[1]]
    assert "row 'a': its embedded prompt is not finite" in diagnose(policy, ask[0], bad, groups, given, parameters)


def test_completions_drawn_from_nothing_are_unscored(policy):
    from leaf.model.sampling import sample

    groups = sample(policy, policy.embed(tiny.rows(2)), num_completions=3, max_new_tokens=4)
    groups[1].surprisal[0, 0] = math.nan
    kept, rewards, count = unscore_unsampled(groups, [torch.ones(3), torch.ones(3)])
    assert count == 1
    assert kept[1].surprisal.isfinite().all()
    assert rewards[0].tolist() == [1, 1, 1]
    assert rewards[1].isnan().tolist() == [True, False, False]


def test_a_model_that_overflows_while_sampling_skips_its_steps(tmp_path):
    """NaN logits everywhere: nothing is scored, every step is skipped, and the run says what to do."""
    made, said = trainer(tmp_path, max_skipped_steps=2)
    made.start()
    decode = made.policy.decode
    made.policy.decode = lambda embeddings, **arguments: decode(embeddings, **arguments) * math.nan
    with pytest.raises(RunError, match="3 optimiser steps in a row"):
        made._steps()
    assert any("6 completions came from logits that are not finite" in line for line in said)
    assert [record["unscored"] for record in records(tmp_path)] == [6, 6]


def test_a_run_goes_on_without_the_completions_a_reward_failed_on(tmp_path):
    calls = []

    def moody(completions, **columns):
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the judge is away")
        values = letters(completions)
        return values if len(calls) != 3 else ["bad", *values[1:]]

    made, said = trainer(tmp_path, moody, on_reward_error="skip")
    made.train()
    assert [record["reward_errors"] for record in records(tmp_path)] == [0, 6, 1, 0]
    assert [record["unscored"] for record in records(tmp_path)] == [0, 6, 1, 0]
    assert any("step 2: left unscored: The reward function moody raised ConnectionError: the judge" in s for s in said)
    calls.clear()
    with pytest.raises(RewardError, match="moody raised ConnectionError"):
        trainer(tmp_path / "other", moody)[0].train()


def test_rewards_too_large_to_be_added_up_are_refused_or_left_out(tmp_path):
    def huge(completions, **columns):
        return [1e308] * len(completions)

    with pytest.raises(RewardError, match=r"huge returned 1e\+308 for completion 0; allowed are .* up to 1e\+30"):
        trainer(tmp_path / "stop", huge)[0].train()
    trainer(tmp_path, huge, on_reward_error="skip", max_steps=1)[0].train()
    assert [record["reward_errors"] for record in records(tmp_path)] == [6]
    bound = RewardSum([lambda **_: [1e30] * 2] * 2, weights=[1e30, 1e30])(completions=["a", "b"])
    assert np.isfinite(bound.totals**2).all()
    with pytest.raises(ConfigError, match="one number for each, up to 1e"):
        RewardSum([huge], weights=[1e31])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda tree, rewards, surprisal: torch.full(tree.node.shape, 1e39, dtype=torch.float64),
            "that are not finite in float32",
        ),
        (lambda tree, rewards, surprisal: rewards, r"of shape \(3,\)"),
        (lambda tree, rewards, surprisal: None, "None for row '"),
    ],
)
def test_a_rule_of_the_users_own_is_held_to_its_shape_and_to_finite_numbers(tmp_path, rule, message):
    model, processor = tiny.tiny_model()
    config = LeafConfig(output_dir=str(tmp_path / "run"), num_completions=3, lora_r=2, device="cpu", max_new_tokens=5)
    made = LeafTrainer(model, [letters], config, tiny.rows(4), None, processor, credit=rule, report=lambda line: None)
    with pytest.raises(ConfigError, match=rf"The credit rule gave .*{message}.*; it must return a tensor of finite"):
        made.train()


def test_a_run_goes_on_without_a_row_whose_audio_is_broken(tmp_path):
    rows = tiny.rows(4)
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    rows[2]["audio"] = str(tmp_path / "broken.wav")
    rows = [{**row, "audio": row["audio"]} for row in rows]
    made, said = trainer(tmp_path, rows=rows, on_bad_audio="skip")
    made.train()
    got = records(tmp_path)
    assert sum(record["bad_audio"] for record in got) == 2  # 8 draws from 4 rows
    assert sum("left out, the next row takes its place: Row '2': The audio file" in line for line in said) == 2
    with pytest.raises(AudioError, match=r"Row '2': The audio file .*broken\.wav cannot be read"):
        trainer(tmp_path / "other", rows=rows)[0].train()
    for row in rows:
        row["audio"] = str(tmp_path / "broken.wav")
    with pytest.raises(DataError, match="4 rows, one after the other, have no usable audio"):
        trainer(tmp_path / "third", rows=rows, on_bad_audio="skip")[0].train()


def test_a_run_says_when_it_learns_nothing():
    said = []
    streaks = Streaks(said.append, patience=3)
    good = {"reward_mean": 0.5, "zero_variance_groups": 0.5, "truncated": 0.1}
    for step, record in enumerate(
        [
            good,
            *[good | {"zero_variance_groups": 1.0}] * 4,
            good,
            *[good | {"truncated": 1.0}] * 3,
            *[good | {"reward_mean": None, "zero_variance_groups": 1.0}] * 3,
        ]
    ):
        streaks.step({"step": step, **record})
    assert [line[:20] for line in said] == [
        "step 3: for 3 steps ",
        "step 8: for 3 steps ",
        "step 11: for 3 steps",
    ]
    for line, words in zip(said, ["all equal", "without ending", "no completion was scored"], strict=True):
        assert words in line


@pytest.mark.parametrize("credit", sorted(CREDIT_RULES))
def test_completions_that_are_empty_endless_equal_or_unscored_give_finite_steps(tmp_path, credit, monkeypatch):
    """One step each: all empty, all cut at the limit, all rewards equal, none scored; every rule, no NaN anywhere."""
    from leaf.model import sampling

    made, _ = trainer(tmp_path, lambda completions, kind=None, **_: rewards[kind[0]], credit=credit, max_steps=1)
    rewards = {"equal": [0.5] * 6, "none": [None] * 6, "mixed": [0.1, None, 0.9, math.nan, 0.2, 0.2]}
    choose = sampling._choose
    eos = made.policy.eos_token_ids[0]
    for kind in rewards:
        made.train_rows = [{**row, "kind": kind} for row in tiny.rows(2)]
        for forced in (eos, 5, None):

            def forced_choice(logits, row, top_p, greedy, draws, forced=forced):
                tokens, nats = choose(logits, row, top_p, greedy, draws)
                return (tokens if forced is None else torch.full_like(tokens, forced)), nats

            monkeypatch.setattr(sampling, "_choose", forced_choice)
            rollout = made.rollout(1)
            assert {eos: 1, 5: 5}.get(forced, rollout.groups[0].tokens.shape[1]) == rollout.groups[0].tokens.shape[1]
            assert bool(rollout.groups[0].truncated.all()) or forced != 5
            for advantages, reward in zip(rollout.advantages, rollout.rewards, strict=True):
                assert advantages.isfinite().all()
                assert not advantages[reward.isnan()].any()
                assert kind == "mixed" or not advantages.any()
            stats = made.update(rollout)
            assert stats["skipped_steps"] == 0
            assert all(value is not None and math.isfinite(value) for value in stats.values())
            statistics = rollout_statistics(rollout.groups, rollout.rewards, rollout.advantages)
            json.dumps(statistics, allow_nan=False)
    assert all(bool(p.isfinite().all()) for p in made.parameters)


def test_eighty_thousand_rows_are_read_in_seconds(tmp_path):
    """A tenth of them here: the time per row is what counts; benchmarks and docs have the whole."""
    soundfile.write(tmp_path / "a.wav", wave(0.1), 16000)
    rows = [{"prompt": "Say", "audio": "a.wav", "reference": str(i), "split": "train"} for i in range(8000)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    began = time.process_time()
    assert len(load(str(tmp_path / "data.jsonl"), "train")) == 8000
    assert time.process_time() - began < 3.0


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "hint"),
    [("leaff", " Did you mean 'leaf'?"), ("zzz", ""), (7, ""), ("leaf" * 10_000, "")],
)
def test_a_mistyped_name_is_told_the_closest_allowed_one(given, hint):
    assert did_you_mean(given, ["leaf", "grpo"]) == hint

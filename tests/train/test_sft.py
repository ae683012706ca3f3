import inspect
import json
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from leaf.checksums import write_checksums
from leaf.commands.main import app
from leaf.config import AlignConfig, SftConfig
from leaf.errors import DataError, ModelError, RunError, RunInterrupted
from leaf.model.checks import plain_log_probs
from leaf.model.policy import Policy
from leaf.model.projector import audio_features, load_projector, save_projector, unfreeze_projector
from leaf.runs.checkpoints import read_checkpoint
from leaf.runs.directory import RunDirectory
from leaf.train.align import CtcAligner, align, token_error_rate
from leaf.train.sft import sft, sft_gradient, share_audio
from tests.helpers import tiny


@pytest.fixture
def policy():
    model, processor = tiny.tiny_model()
    lora = peft.LoraConfig(r=2, init_lora_weights=False)
    return Policy.wrap(model, processor, lora=lora)


def test_sharing_one_encoding_changes_neither_loss_nor_gradient(policy):
    """Three questions on one recording and one on another, against each row alone, prompt and all."""
    first, second, _ = tiny.rows(3)
    rows = [{**first, "prompt": text, "reference": text[::-1]} for text in tiny.TEXTS[:3]] + [second]
    groups = share_audio(policy, rows)
    assert [len(group) for group in groups] == [3, 1]
    parameters = [*unfreeze_projector(policy), *(p for p in policy.parameters() if p.requires_grad)]
    shared = sft_gradient(policy, groups)
    gradients = [p.grad.clone() for p in parameters]
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([[*policy.token_ids(row["reference"]), policy.eos_token_ids[0]]])
        lengths = torch.tensor([ids.shape[1]])
        total = total - inspect.unwrap(plain_log_probs)(policy, policy.embed([row])[0], ids, lengths).sum()
        count += ids.shape[1]
    assert shared == pytest.approx((total / count).item(), rel=1e-4)
    for a, b in zip(gradients, torch.autograd.grad(total / count, parameters), strict=True):
        assert float((a - b).abs().max()) <= 1e-3 * float(b.abs().max()) + 1e-7


def test_stage_sft_refuses_the_prompts_that_stage_rl_refuses(policy):
    """In the same words, wherever in the prompt the fault is."""
    row = tiny.rows(1)[0]
    two = {**row, "prompt": "<sound> and <sound>"}
    for attempt in (lambda: policy.embed([two]), lambda: share_audio(policy, [two])):
        with pytest.raises(ModelError, match=r"has 2 audio placeholders \(<sound>\); exactly one is allowed"):
            attempt()
    groups = share_audio(policy, [{**row, "prompt": "what do i press " * 20}])
    policy.max_prompt_tokens = policy.embed(groups[0])[0].length
    sft_gradient(policy, groups)
    policy.max_prompt_tokens -= 1
    for attempt in (lambda: policy.embed(groups[0]), lambda: sft_gradient(policy, groups)):
        with pytest.raises(ModelError, match=rf"audio included; at most {policy.max_prompt_tokens} are allowed"):
            attempt()


def test_every_forward_is_followed_by_its_backward_and_the_sum_stays_the_same(policy, monkeypatch):
    """Micro-batches of one row each: one graph stands at a time; loss and gradients are those of one large batch."""
    rows = [{**row, "reference": tiny.TEXTS[i]} for i, row in enumerate(tiny.rows(3))]
    groups = share_audio(policy, rows)
    parameters = [*unfreeze_projector(policy), *(p for p in policy.parameters() if p.requires_grad)]
    whole = sft_gradient(policy, groups)
    wanted = [p.grad.clone() for p in parameters]
    policy.zero_grad()
    events, decode = [], policy.decode

    def watched(*arguments, **options):
        hidden = decode(*arguments, **options)
        events.append("forward")
        hidden.register_hook(lambda gradient: events.append("backward"))
        return hidden

    monkeypatch.setattr(policy, "decode", watched)
    policy.token_budget = 1
    assert sft_gradient(policy, groups) == pytest.approx(whole, rel=1e-6)
    assert events == ["forward", "backward"] * 3
    for parameter, value in zip(parameters, wanted, strict=True):
        assert torch.allclose(parameter.grad, value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_running_out_of_memory_halves_the_budget_and_loses_no_supervised_step(tmp_path, monkeypatch):
    config = SftConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        batch_size=3,
        eval_every=0,
        eval_items=1,
        lora_r=2,
        device="cpu",
        lora_dropout=0.0,
        max_new_tokens=4,
    )
    losses = []
    for limit in (10**6, 100):
        policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2), token_budget=4096)
        decode = policy.decode

        def small(embeddings, decode=decode, limit=limit, **options):
            if embeddings.shape[0] * embeddings.shape[1] > limit and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return decode(embeddings, **options)

        monkeypatch.setattr(policy, "decode", small)
        run = RunDirectory.create(replace(config, output_dir=str(tmp_path / str(limit))))
        sft(config, policy, tiny.rows(3), tiny.rows(1), run, lambda line: None)
        losses.append([json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()])
        assert (policy.token_budget < 4096) == (limit == 100)
        run.release()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_projector_learning_rate_of_zero_leaves_the_projector(policy, tmp_path):
    before = {key: value.clone() for key, value in policy.projector.state_dict().items()}
    config = SftConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        eval_every=0,
        lora_r=2,
        device="cpu",
        learning_rate=1e-2,
        projector_learning_rate=0.0,
    )
    run = RunDirectory.create(config)
    sft(config, policy, tiny.rows(2), [], run, lambda line: None)
    run.release()
    assert all(torch.equal(value, before[key]) for key, value in policy.projector.state_dict().items())


@pytest.mark.parametrize("trained", [True, False])
def test_without_validation_no_validation_rows_are_needed(tmp_path, trained):
    few = {"max_steps": 1, "eval_every": 0, "lora_r": 2, "device": "cpu", "train_projector": trained}
    config = SftConfig(output_dir=str(tmp_path / "run"), **few)
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    run = RunDirectory.create(config)
    assert sft(config, policy, tiny.rows(2), [], run, lambda line: None) == {}
    assert (run.path / "last/adapter_model.safetensors").is_file()
    assert (run.path / "last/projector.safetensors").is_file() == trained
    assert not (run.path / "validation.jsonl").exists()
    run.release()


def test_adapter_and_projector_are_saved_together_or_not_at_all(tmp_path, monkeypatch):
    config = SftConfig(output_dir=str(tmp_path / "run"), max_steps=2, save_every=1, eval_every=0, lora_r=2)
    policy, saves = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2)), []

    def fail_at_the_second(policy, file):
        saves.append(file)
        if len(saves) == 2:
            raise OSError("killed")
        save_projector(policy, file)

    monkeypatch.setattr("leaf.train.sft.save_projector", fail_at_the_second)
    run = RunDirectory.create(config)
    with pytest.raises(RunError, match="killed"):
        sft(config, policy, tiny.rows(2), [], run, lambda line: None)
    run.release()
    _, first = read_checkpoint(run.path / "checkpoints/step-000001")
    saved = load_file(run.path / "last/adapter_model.safetensors")
    name = next(iter(saved))
    assert torch.equal(saved[name], first[f"parameter/model.{name.replace('.weight', '.default.weight')}"])
    for name, value in load_file(run.path / "last/projector.safetensors").items():
        assert torch.equal(value, first[f"parameter/model.base_model.model.model.multi_modal_projector.{name}"])


def test_what_would_fail_once_the_run_has_begun_is_refused_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "sft.yaml"
    recipe.write_text("stage: sft\nmodel: nowhere\n")
    for override, message in (
        ("track_with=wandb", "track_with is 'wandb', and stage sft .* Set track_with=null"),
        ("best_metric=blue", "The metric 'blue' is unknown"),
        ("best_metric=reward", "best_metric is 'reward', and stage sft has no rewards. Allowed are metrics of texts"),
        ("best_metric=rewards/chrf/mean", "and stage sft has no rewards"),
    ):
        done = CliRunner().invoke(app, ["sft", str(recipe), override])
        assert done.exit_code == 1
        assert re.search(message, str(done.exception))
    assert not (tmp_path / "runs").exists()


def test_a_validation_that_was_due_may_be_dropped(tmp_path):
    """A signal came before it; the resumed run may be told not to validate."""
    few = {"max_steps": 1, "eval_every": 1, "eval_items": 1, "lora_r": 2, "device": "cpu", "max_new_tokens": 3}
    config = SftConfig(output_dir=str(tmp_path / "run"), **few)

    def train(config, *, resume, stop=False):
        run = RunDirectory.begin(config, resume, say=lambda line: None)
        append = run.append

        def append_and_stop(name, record):
            append(name, record)
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)

        run.append = append_and_stop
        policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
        try:
            return sft(config, policy, tiny.rows(2), tiny.rows(1), run, lambda line: None, resume=resume)
        finally:
            run.release()

    with pytest.raises(RunInterrupted, match="after step 1 of 1"):
        train(config, resume=False, stop=True)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert train(replace(config, eval_every=0, output_dir=str(tmp_path / "copy")), resume=True) == {}
    assert "bleu" in train(config, resume=True)


def test_an_empty_reference_is_refused(policy):
    with pytest.raises(DataError, match="empty reference"):
        sft_gradient(policy, [[{**tiny.rows(1)[0], "reference": " "}]])


def test_ctc_reads_frames_that_lie_on_token_embeddings(policy):
    texts = ["press one", "you have two"]
    aligner = CtcAligner(policy, texts)
    embeddings = aligner.get_buffer("embeddings")
    frames = []
    for text in texts:
        path = [0]
        for index in aligner.targets(text):
            path += [index, index, 0]  # each token twice, blanks between
        frames.append(embeddings[path] * 50)
    aligner.log_scale.data.fill_(5.0)
    assert [aligner.decode(f) for f in frames] == [aligner.targets(text) for text in texts]
    assert token_error_rate(aligner, frames, texts) == 0.0
    assert aligner(frames, texts).item() == pytest.approx(0.0, abs=1e-2)
    assert token_error_rate(aligner, frames[::-1], texts) > 0.5


def test_a_token_that_no_training_transcript_has_is_an_error_of_the_validation(policy):
    aligner = CtcAligner(policy, ["press one"])
    (known,) = aligner.targets("press one")[:1]
    frames = aligner.get_buffer("embeddings")[[known]] * 50
    text = aligner.tokenizer.decode([aligner.vocabulary[known]])
    assert token_error_rate(aligner, [frames], [text]) == 0.0
    unknown = len(aligner.token_ids(text + " seven")) - 1
    assert unknown > 0
    assert token_error_rate(aligner, [frames], [text + " seven"]) == unknown / (unknown + 1)


def test_ctc_tells_what_does_not_fit_its_frames(policy):
    aligner = CtcAligner(policy, ["press one", "oo"])
    (twice,) = {*aligner.targets("oo")}
    assert aligner.targets("oo") == [twice, twice]
    frames = aligner.get_buffer("embeddings")[[twice, 0, twice]]
    assert aligner.fits(frames, "oo")
    assert not aligner.fits(frames[:2], "oo")  # a blank has to part equal tokens
    assert aligner([frames], ["oo"]).isfinite()
    assert aligner([frames[:2]], ["oo"]).isinf()


def aligned(tmp_path, name, rows, **changes):
    """Take two steps of stage align; return what it said and the losses it logged."""
    config = AlignConfig(
        output_dir=str(tmp_path / name), stage="align", max_steps=2, batch_size=2, eval_every=0, **changes
    )
    said, run = [], RunDirectory.create(config)
    align(config, Policy.wrap(*tiny.tiny_model()), rows, [], run, said.append)
    run.release()
    return said, [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_align_says_and_leaves_out_transcripts_that_do_not_fit_their_audio(tmp_path):
    rows = tiny.rows(3)
    long = {**rows[0], "reference": " ".join(tiny.TEXTS * 5)}
    said, losses = aligned(tmp_path, "with", [rows[0], long, *rows[1:], long])
    assert said[1] == (
        "align: 2 of 5 training rows are left out, since their transcripts have more tokens than CTC can write over "
        "their audio frames: rows 1, 4, counted from 0"
    )
    assert all(loss > 0 for loss in losses)
    with pytest.raises(DataError, match="None of the 2 training rows has as many audio frames as CTC needs"):
        aligned(tmp_path, "none", [long, long])


def test_cached_audio_features_give_the_prompt_embeddings(policy):
    rows = tiny.rows(3)
    features = audio_features(policy, rows)
    for frames, prompt in zip(features, policy.embed(rows), strict=True):
        assert torch.allclose(policy.projector(frames), prompt.embeddings[prompt.is_audio], atol=1e-5)


def test_a_projector_file_of_another_model_is_refused(policy, tmp_path):
    save_projector(policy, tmp_path / "projector.safetensors")
    load_projector(policy, tmp_path / "projector.safetensors")
    policy.projector.linear_2 = torch.nn.Linear(3, 3)
    with pytest.raises(ModelError, match="does not fit"):
        load_projector(policy, tmp_path / "projector.safetensors")


def flip_last_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_damaged_projector_is_refused_by_the_checksum_in_it_or_beside_it(policy, tmp_path):
    file = tmp_path / "projector.safetensors"
    save_projector(policy, file)
    flip_last_byte(file)
    with pytest.raises(ModelError, match="is not as it was written: the checksum of its weights is wrong"):
        load_projector(policy, file)
    save_file(load_file(file), file)  # as other programs write it: without a checksum
    load_projector(policy, file)
    (tmp_path / "adapter_config.json").write_text("{}")
    write_checksums(tmp_path)
    load_projector(policy, file)
    flip_last_byte(file)
    with pytest.raises(ModelError, match=r"the checksum of projector\.safetensors is wrong"):
        load_projector(policy, file)


def test_a_damaged_projector_of_stage_align_is_said_and_written_again(tmp_path):
    rows, policy = tiny.rows(3), Policy.wrap(*tiny.tiny_model())
    aligned(tmp_path, "run", rows)
    file = tmp_path / "run/projector.safetensors"
    whole = file.read_bytes()
    flip_last_byte(file)
    config = AlignConfig(output_dir=str(tmp_path / "run"), stage="align", max_steps=2, batch_size=2, eval_every=0)
    said, run = [], RunDirectory.begin(config, resume=True)
    align(config, policy, rows, [], run, said.append, resume=True)
    run.release()
    assert any(line.startswith("projector.safetensors is damaged (the checksum of its weights") for line in said)
    assert file.read_bytes() == whole


def test_rows_share_audio_only_if_every_sample_is_the_same(policy):
    """Waveforms that differ in the middle alone print alike; they are different recordings."""
    first = np.zeros(16000, dtype=np.float32)
    second = first.copy()
    second[8000] = 0.5
    waves = [first, second, first.copy()]
    rows = [{"prompt": "Say it", "reference": "a", "audio": {"array": w, "sampling_rate": 16000}} for w in waves]
    assert [len(group) for group in share_audio(policy, rows)] == [2, 1]


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_the_other_stages_check_the_family_before_the_first_step_too(tmp_path, stage):
    few = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "eval_every": 0, "device": "cpu"}
    config = SftConfig(**few, lora_r=2) if stage == "sft" else AlignConfig(**few)
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2) if stage == "sft" else None)
    policy.family = replace(policy.family, projector="lm_head")
    run = RunDirectory.create(config)
    with pytest.raises(ModelError, match=r"has projector='lm_head', and that is wrong"):
        (sft if stage == "sft" else align)(config, policy, tiny.rows(2), [], run, lambda line: None)  # type: ignore[arg-type]
    run.release()
    assert not (run.path / "checkpoints").exists()

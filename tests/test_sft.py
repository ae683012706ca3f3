import numpy as np
import peft
import pytest
import tiny
import torch

from leaf.align import CtcAligner, token_error_rate
from leaf.checks import plain_log_probs
from leaf.errors import DataError, ModelError
from leaf.sft import sft_loss, share_audio
from leaf.speech.policy import Policy


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
    parameters = [*policy.unfreeze_projector(), *(p for p in policy.parameters() if p.requires_grad)]
    shared = sft_loss(policy, groups)
    gradients = torch.autograd.grad(shared, parameters)
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([[*policy.token_ids(row["reference"]), policy.eos_token_ids[0]]])
        lengths = torch.tensor([ids.shape[1]])
        total = total - plain_log_probs.__wrapped__(policy, policy.embed([row])[0], ids, lengths).sum()
        count += ids.shape[1]
    assert torch.allclose(shared, total / count, rtol=1e-4)
    for a, b in zip(gradients, torch.autograd.grad(total / count, parameters), strict=True):
        assert float((a - b).abs().max()) <= 1e-3 * float(b.abs().max()) + 1e-7


def test_an_empty_reference_is_refused(policy):
    with pytest.raises(DataError, match="empty reference"):
        sft_loss(policy, [[{**tiny.rows(1)[0], "reference": " "}]])


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


def test_cached_audio_features_give_the_prompt_embeddings(policy):
    rows = tiny.rows(3)
    features = policy.audio_features(rows)
    for frames, prompt in zip(features, policy.embed(rows), strict=True):
        assert torch.allclose(policy.projector(frames), prompt.embeddings[prompt.is_audio], atol=1e-5)


def test_a_projector_file_of_another_model_is_refused(policy, tmp_path):
    policy.save_projector(tmp_path / "projector.safetensors")
    policy.load_projector(tmp_path / "projector.safetensors")
    policy.projector.linear_2 = torch.nn.Linear(3, 3)
    with pytest.raises(ModelError, match="does not fit"):
        policy.load_projector(tmp_path / "projector.safetensors")


def test_rows_share_audio_only_if_every_sample_is_the_same(policy):
    """Waveforms that differ in the middle alone print alike; they are different recordings."""
    first = np.zeros(16000, dtype=np.float32)
    second = first.copy()
    second[8000] = 0.5
    waves = [first, second, first.copy()]
    rows = [{"prompt": "Say it", "reference": "a", "audio": {"array": w, "sampling_rate": 16000}} for w in waves]
    assert [len(group) for group in share_audio(policy, rows)] == [2, 1]

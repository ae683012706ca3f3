"""vLLM is asked whether an export is right; an adapter that it leaves out is refused."""

import signal
import subprocess
import sys
import time

import httpx2
import pytest

from leaf.engines.vllm.check import check_with_vllm
from leaf.engines.vllm.export import adapter_for_vllm, export_language_model
from leaf.engines.vllm.launch import free_port
from leaf.errors import ModelError
from tests.helpers.vllm_server import program, wide_policy

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2400)]


def written(policy, folder):
    """Save a policy's checkpoint and its adapter as leaf does."""
    policy.save_adapter(folder / "saved")
    with policy.model.disable_adapter():
        policy.base.save_pretrained(
            folder / "model",
            state_dict={
                name.replace(".base_layer.", "."): value
                for name, value in policy.base.state_dict().items()
                if ".lora_" not in name
            },
        )
    policy.processor.save_pretrained(folder / "model")


def test_an_embedded_prompt_is_answered_as_the_policy_does(tmp_path):
    program()
    policy = wide_policy("qwen2_audio")
    model = export_language_model(policy, tmp_path / "language_model")
    adapter = adapter_for_vllm(policy, tmp_path / "adapter")
    assert "vLLM answers as leaf does" in check_with_vllm(policy, model, adapter)
    policy.save_adapter(tmp_path / "saved")  # under the names of the speech model
    with pytest.raises(ModelError, match=r"does not answer as the adapter: .* vLLM left the adapter out"):
        check_with_vllm(policy, model, tmp_path / "saved")


@pytest.mark.parametrize("case", ["granite_speech", "glmasr"])
def test_vllms_own_speech_class_takes_the_exported_adapter_and_leaves_out_the_saved_one(case, tmp_path):
    program()
    policy = wide_policy(case)
    written(policy, tmp_path)
    exported = adapter_for_vllm(policy, tmp_path / "exported", onto="speech")
    assert "vLLM answers as leaf does" in check_with_vllm(policy, tmp_path / "model", exported, audio=True)
    with pytest.raises(ModelError, match=r"does not answer as the adapter: .* vLLM left the adapter out"):
        check_with_vllm(policy, tmp_path / "model", tmp_path / "saved", audio=True)


def test_leaf_serve_answers_with_the_adapter_of_a_folder(tmp_path, monkeypatch):
    found = str(program())
    policy = wide_policy("qwen2_audio")
    written(policy, tmp_path)
    monkeypatch.chdir(tmp_path)
    port = free_port()
    where = ["model=model", "device=cpu", "--port", str(port), "--to", "served", "--vllm", found]
    words = ["serve", "saved", *where, "--", "--max-num-seqs", "4", "--max-model-len", "300"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "leaf", *words], stdout=log, stderr=log)
    try:
        with httpx2.Client(trust_env=False) as client:
            limit = time.monotonic() + 900
            while time.monotonic() < limit and server.poll() is None:
                try:
                    models = client.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
                    break
                except httpx2.TransportError:
                    time.sleep(1)
            else:
                raise AssertionError((tmp_path / "log").read_text())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    said = (tmp_path / "log").read_text()
    assert f"sampler_options: {{url: 'http://127.0.0.1:{port}'}}" in said
    names = [one["id"] for one in models]
    assert names[0] == str(tmp_path / "served/language_model")
    assert len(names) == 2
    assert names[1].startswith("saved-")

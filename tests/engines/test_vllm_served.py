"""What a real vLLM server makes of what leaf exports, by greedy tokens and their log-probabilities."""

import base64
import io

import httpx2
import pytest
import torch

from leaf.engines.vllm.export import adapter_for_vllm, export_language_model
from leaf.model.sampling import sample
from tests.helpers import tiny
from tests.helpers.vllm_server import program, serving, wide_policy

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # 40 s each on two quiet cores
TOKENS = 12


class Served:
    """A client of one server, for these tests alone."""

    def __init__(self, url, http):
        self.url, self.http = url, http

    def load(self, name, folder):
        body = {"lora_name": name, "lora_path": str(folder)}
        assert self.http.post(f"{self.url}/v1/load_lora_adapter", json=body).status_code == 200

    def greedy(self, model, group, policy):
        """Continue the prompt of a group greedily: token ids and their log-probabilities."""
        saved = io.BytesIO()
        torch.save(group.prompt.embeddings.detach().clone(), saved)
        body = {
            "model": str(model),
            "prompt_embeds": base64.b64encode(saved.getvalue()).decode(),
            "max_tokens": TOKENS,
            "temperature": 0,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": list(policy.eos_token_ids),
        }
        choice = self.http.post(f"{self.url}/v1/completions", json=body).raise_for_status().json()["choices"][0]
        return choice["token_ids"], torch.tensor(choice["logprobs"]["token_logprobs"])


def drawn(group):
    """Read from a group of one completion its token ids and their log-probabilities."""
    length = int(group.lengths[0])
    return group.tokens[0, :length].tolist(), -group.surprisal[0, :length]


FAMILIES = ("granite_speech", "granite_speech_plus", "glmasr", "qwen2_audio", "audioflamingo3", "musicflamingo")


@pytest.mark.parametrize("case", [*FAMILIES, "vibevoice_asr"])
def test_a_served_language_model_answers_as_the_policy(case, tmp_path):
    """With the adapter as exported. Under the names that leaf saves, the server takes it and serves the bare model."""
    program()
    policy = wide_policy(case)
    language_model = export_language_model(policy, tmp_path / "language_model")
    adapter_for_vllm(policy, tmp_path / "exported")
    policy.save_adapter(tmp_path / "saved")
    prompts = policy.embed(tiny.rows(3))
    options = {"num_completions": 1, "max_new_tokens": TOKENS, "greedy": True}
    with torch.no_grad():
        adapted = sample(policy, prompts, **options)
        with policy.reference():
            bare = sample(policy, prompts, **options)
    with serving(language_model, tmp_path) as url, httpx2.Client(trust_env=False, timeout=120) as http:
        server = Served(url, http)
        server.load("exported", tmp_path / "exported")
        server.load("saved", tmp_path / "saved")
        differs = 0
        for group, without in zip(adapted, bare, strict=True):
            for name, wanted in (("exported", group), (language_model, without), ("saved", without)):
                tokens, log_probs = server.greedy(name, group, policy)
                assert tokens == drawn(wanted)[0]
                assert torch.allclose(log_probs, drawn(wanted)[1], atol=1e-4)
            differs += drawn(group)[0] != drawn(without)[0]
        assert differs == 3

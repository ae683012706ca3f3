"""Answer prompts with vLLM's own engine, greedily, without and with an adapter.

vLLM's Python runs this file as a program (leaf.engines.vllm.check). It has no leaf, so nothing of leaf is imported.

    python ask.py JOB.json ANSWERS.json
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file


def main() -> None:
    """Read a job and write [[token ids, log-probabilities] for each prompt] for the bare model and for the adapter."""
    job_file, answers_file = map(Path, sys.argv[1:])
    job = json.loads(job_file.read_text())
    vllm: Any = importlib.import_module("vllm")
    request: Any = importlib.import_module("vllm.lora.request").LoRARequest
    llm = vllm.LLM(enforce_eager=True, enable_lora=True, seed=0, logprobs_mode="processed_logprobs", **job["engine"])
    params = vllm.SamplingParams(temperature=0.0, max_tokens=job["max_tokens"], logprobs=0)
    answers = []
    for lora in (None, request("adapter", 1, job["adapter"])):
        # One at a time: vLLM 0.32 fails on CPUs where a batch has embedded prompts and an adapter at once.
        outputs = [llm.generate(_prompt(one), params, lora_request=lora, use_tqdm=False)[0] for one in job["prompts"]]
        answers.append([_answer(output.outputs[0]) for output in outputs])
    answers_file.write_text(json.dumps(answers))


def _prompt(one: dict[str, Any]) -> dict[str, Any]:
    if "embeddings" in one:
        return {"prompt_embeds": load_file(one["embeddings"])["embeddings"]}
    wave = load_file(one["wave"])["wave"].numpy()
    return {"prompt_token_ids": one["ids"], "multi_modal_data": {"audio": (wave, one["rate"])}}


def _answer(output: Any) -> tuple[list[int], list[float]]:
    ids = list(output.token_ids)
    return ids, [position[token].logprob for token, position in zip(ids, output.logprobs, strict=True)]


if __name__ == "__main__":
    main()

"""Check an export with vLLM itself: what it answers, without and with the adapter, has the policy's probabilities.

An adapter that vLLM leaves out is caught here, because the answers with the adapter then have those of the bare model.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from leaf.credit.tree import PrefixTree
from leaf.engines.vllm.launch import find_vllm, largest_rank, server_environment
from leaf.errors import ModelError, RunError
from leaf.files import read_json
from leaf.model.checks import TOLERANCE
from leaf.model.policy import Policy, Prompt
from leaf.model.scoring import score
from leaf.progress import Busy

_TOKENS, _SECONDS, _LINES = 16, 3600, 15


def check_with_vllm(
    policy: Policy,
    model: str | Path,
    adapter: Path,
    vllm: str | Path | None = None,
    *,
    audio: bool = False,
    say: Callable[[str], None] = print,
) -> str:
    """Compare what vLLM answers with the policy, and say in a line how far they are apart.

    Three prompts with made sounds are answered greedily. The policy scores the answers; the mean difference per token
    may be as large as leaf allows between its own scorer and the stock model.

    Args:
        policy: has the adapter.
        model: what vLLM loads: an exported language model or, with `audio`, a checkpoint.
        adapter: as exported.
        vllm: an environment that has vLLM; None for where `find_vllm` finds it.
        audio: let vLLM take the sound and the text; otherwise it takes the prompts as the policy embeds them.
        say: takes lines for a person.

    Raises:
        ModelError: vLLM answers with other probabilities.
        RunError: vLLM failed.
    """
    rows = _rows(policy)
    prompts = policy.embed(rows)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = [_with_sound(policy, row, folder) for row in rows] if audio else _embedded(prompts, folder)
        dtype = str(policy.base.dtype).removeprefix("torch.")
        longest = max(prompt.length for prompt in prompts) + _TOKENS
        settings = read_json(adapter / "adapter_config.json") or {}
        engine = {"model": str(model), "dtype": dtype, "max_lora_rank": largest_rank(settings["r"])}
        # vLLM counts placeholders of its longest sound, so a speech class gets the model's own limit.
        engine |= {"limit_mm_per_prompt": {"audio": 1}} if audio else {"max_model_len": longest}
        engine |= {} if audio else {"enable_prompt_embeds": True}
        job = {"engine": engine, "adapter": str(adapter), "prompts": asked, "max_tokens": _TOKENS}
        with Busy(say, "asking vLLM"):
            bare, adapted = _ask(find_vllm(vllm), job, folder)
    return _compared(policy, prompts, bare, adapted)


def _rows(policy: Policy) -> list[dict[str, Any]]:
    """Make rows with sounds of different pitch and length."""
    rate = policy.family.sampling_rate(policy.processor)
    rows = []
    for seconds, pitch, text in ((1.0, 220.0, "What is said?"), (1.5, 330.0, "Translate."), (0.7, 440.0, "Listen.")):
        time = np.arange(int(seconds * rate)) / rate
        wave = 0.3 * np.sin(2 * np.pi * pitch * time) * np.sin(2 * np.pi * 3.0 * time)
        rows.append({"prompt": text, "audio": {"array": wave.astype(np.float32), "sampling_rate": rate}})
    return rows


def _embedded(prompts: Sequence[Prompt], folder: Path) -> list[dict[str, str]]:
    files = [folder / f"{i}.safetensors" for i in range(len(prompts))]
    for prompt, file in zip(prompts, files, strict=True):
        save_file({"embeddings": prompt.embeddings.detach().cpu().contiguous()}, file)
    return [{"embeddings": str(file)} for file in files]


def _with_sound(policy: Policy, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder / f"{row['prompt']}.safetensors"
    save_file({"wave": torch.from_numpy(row["audio"]["array"])}, file)
    text = policy.render(row["prompt"])
    if not isinstance(text, str):
        raise ModelError(
            f"The family {policy.family.model_type!r} takes conversations, and the check of vLLM's own class takes "
            "text. Leave --check-with and LEAF_VLLM out, or export with `--language-model`."
        )
    return {"ids": policy.token_ids(text), "wave": str(file), "rate": row["audio"]["sampling_rate"]}


def _ask(program: Path, job: dict[str, Any], folder: Path) -> Any:
    """Run vLLM's Python on a job, and return its answers."""
    asked, answers = folder / "job.json", folder / "answers.json"
    asked.write_text(json.dumps(job), encoding="utf-8")
    command = [str(program.with_name("python")), str(Path(__file__).with_name("ask.py")), str(asked), str(answers)]
    try:
        done = subprocess.run(
            command, env=server_environment(), capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"vLLM could not be asked ({error}). Check the environment of {program}.") from error
    if done.returncode != 0 or (found := _read(answers)) is None:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LINES:])
        raise RunError(f"vLLM ended with {done.returncode} before it answered. The end of what it said:\n{said}")
    return found


def _read(file: Path) -> Any:
    """Read what vLLM answered; None where it wrote nothing."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _compared(policy: Policy, prompts: Sequence[Prompt], bare: Any, adapted: Any) -> str:
    """Compare answers with the policy, adapter off and on."""
    allowed = TOLERANCE[policy.base.dtype]
    with torch.no_grad():
        on = _away(policy, prompts, adapted)
        with policy.reference():
            off = _away(policy, prompts, bare)
            left_out = _away(policy, prompts, adapted)
    for what, away in (("the bare model", off), ("the adapter", on)):
        if not away <= allowed:
            hint = " The answers are those of the bare model: vLLM left the adapter out." if left_out <= allowed else ""
            raise ModelError(
                f"vLLM does not answer as {what}: log-probabilities differ by {away:.2g} nats per token on average, "
                f"and {allowed:g} is allowed in {policy.base.dtype}.{hint} Do not serve this export; `--for merged` "
                "writes one checkpoint with the adapter in it."
            )
    line = f"vLLM answers as leaf does: {off:.1e} nats per token apart without the adapter, {on:.1e} with it"
    if left_out <= allowed:
        return f"{line}; the adapter changes less than that ({left_out:.1e}), so this cannot tell that vLLM takes it"
    return f"{line} (the adapter moves them by {left_out:.1e}, and {allowed:g} is allowed)"


def _away(policy: Policy, prompts: Sequence[Prompt], answers: Any) -> float:
    """Compute the mean difference per token between the log-probabilities of answers and the policy's of the same."""
    trees, theirs = [], []
    for ids, log_probs in answers:
        trees.append(PrefixTree.build(torch.tensor([ids]), torch.tensor([len(ids)])))
        theirs.append(torch.tensor(log_probs))
    ours: list[Tensor] = score(policy, prompts, trees).log_probs
    return float(torch.cat([(a[0].cpu() - b).abs() for a, b in zip(ours, theirs, strict=True)]).mean())

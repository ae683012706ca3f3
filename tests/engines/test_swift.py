"""ms-swift trains with leaf's credit, by its own command. Its environment is made by `make swift`."""

import importlib.util
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leaf.credit import BATCH_RULES, PrefixTree, RewardedGroup, batch_credit, credit_rule
from leaf.errors import ConfigError
from tests.helpers.models.common import TEXTS, decoder, train_tokenizer
from tests.helpers.models.qwen2_audio import build

pytestmark = [
    pytest.mark.swift,
    pytest.mark.filterwarnings("default"),  # ms-swift's own
    pytest.mark.skipif(
        importlib.util.find_spec("swift") is None, reason="ms-swift is not in this environment; run `make test-swift`"
    ),
]

ROOT = Path(__file__).parents[2]
NAN = float("nan")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tiny Qwen2 and a tiny Qwen2-Audio in text/ and audio/, each with prompts in rows.jsonl."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("swift")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos="<|im_end|>", pad="<|endoftext|>")
    settings = {name: value for name, value in decoder(tokenizer).items() if name != "bos_token_id"}
    model = Qwen2ForCausalLM(Qwen2Config(**settings))
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.8)
    model.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    rows = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in (*TEXTS, *map(str.upper, TEXTS))]
    (folder / "text/rows.jsonl").write_text("\n".join(rows) + "\n")
    hearing, processor = build()
    with torch.no_grad():  # a placeholder among the completions would want audio of its own
        hearing.get_output_embeddings().weight[hearing.config.audio_token_id] = 0
    hearing.save_pretrained(folder / "audio")
    processor.save_pretrained(folder / "audio")
    rows = []
    for i in range(
        8
    ):  # prompts of different lengths: to equal ones ms-swift gives no attention mask, which this model needs
        tone = np.sin(2 * np.pi * 300 * (i + 1) * np.arange(16000) / 16000)
        with wave.open(str(folder / f"audio/{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((tone * 9000).astype("<i2").tobytes())
        message = {"role": "user", "content": "<audio>what do i press" + " now" * i}
        rows.append(json.dumps({"messages": [message], "audios": [str(folder / f"audio/{i}.wav")]}))
    (folder / "audio/rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def letters(text):
    """Score by the letters, some texts not at all."""
    value = sum(map(ord, text)) % 7 / 7
    return None if value > 0.8 else round(value, 1)


def train(project, folder, rule, kind, processes):
    """Train two steps by ms-swift's command, and return what each process kept."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [sys.executable, *(launch if processes > 1 else ["-m"]), "swift.cli.rlhf", "--rlhf_type", "grpo"]
    settings = {
        "model": project / kind,
        "model_type": {"text": "qwen2", "audio": "qwen2_audio"}[kind],
        "template": {"text": "qwen", "audio": "qwen2_audio"}[kind],
        "external_plugins": ROOT / "tests/helpers/swift_plugin.py",
        "dataset": project / kind / "rows.jsonl",
        "reward_funcs": "letters",
        "num_generations": 8,
        # Three groups in two micro-batches, or one that mixes lengths; with two processes each has a half of one.
        "per_device_train_batch_size": {"text": 12, "audio": 24}[kind] // processes,
        "gradient_accumulation_steps": {"text": 2, "audio": 1}[kind],
        "max_steps": 2,
        "max_completion_length": 6,
        "temperature": 0.5,
        "learning_rate": 1e-3,
        "torch_dtype": "float32",
        "tuner_type": "lora",
        "lora_rank": 2,
        "lora_dropout": 0.0,  # ms-swift computes log-probabilities with it
        "use_cpu": "true",
        "use_vllm": "false",
        "report_to": "none",
        "logging_steps": 1,
        "save_steps": 2,
        "output_dir": folder / "out",
    }
    lora = ["--target_modules", "q_proj", "v_proj"]
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "LEAF_RULE": rule, "LEAF_KEPT": str(folder), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *arguments, *lora], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def own_credit(rows, rule):
    """Credit the completions of one step as leaf's own loop does, and give the advantages of each."""
    prompts = [row["prompt"] for row in rows]
    members = [[i for i, one in enumerate(prompts) if one == prompt] for prompt in dict.fromkeys(prompts)]
    groups = []
    for indices in members:
        group = [rows[i] for i in indices]
        assert len(group) == 8
        lengths = torch.tensor([len(row["said"]) for row in group])

        def padded(key, dtype, group=group):
            tensors = [torch.tensor(row[key], dtype=dtype) for row in group]
            return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)

        scores = [letters(row["text"]) for row in group]
        rewards = torch.tensor([NAN if score is None else score for score in scores], dtype=torch.float32).double()
        tree = PrefixTree.build(padded("said", torch.long), lengths)
        surprisal = -padded("log_probs", torch.float64)
        groups.append(RewardedGroup(tree, rewards, surprisal, padded("entropy", torch.float64)))
    if rule in BATCH_RULES:
        given = batch_credit(rule)(groups)
    else:
        given = [credit_rule(rule)(one.tree, one.rewards, surprisal=one.surprisal) for one in groups]
    return {
        i: one[k, : len(rows[i]["said"])]
        for indices, one in zip(members, given, strict=True)
        for k, i in enumerate(indices)
    }


@pytest.mark.parametrize(
    ("kind", "rule", "processes"), [("audio", "leaf", 1), ("text", "gtpo", 1), ("text", "leaf", 2)]
)
def test_advantages_are_those_of_leafs_own_loop_while_the_model_learns(project, tmp_path, kind, rule, processes):
    kept = train(project, tmp_path, rule, kind, processes)
    if processes == 2:
        assert {row["prompt"] for row in kept[0]} & {row["prompt"] for row in kept[1]}
    tolerance = 1e-4 if rule == "gtpo" else 1e-5  # it divides by the entropy, which ms-swift has in float32
    for step in range(2):
        rows = [row for process in kept for row in process if row["step"] == step]
        assert len(rows) == 24
        wanted = own_credit(rows, rule)
        assert max(float(one.abs().max()) for one in wanted.values()) > 0.1
        for i, row in enumerate(rows):
            assert row["advantages"] == pytest.approx(wanted[i].tolist(), rel=tolerance, abs=tolerance)
            assert row["outside"] == 0
    assert list(tmp_path.glob("out/*/checkpoint-2/adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage_estimator": "rloo"}, "advantage_estimator is 'rloo'"),
        ({"scale_rewards": "batch"}, "scale_rewards is 'batch'.*allowed are group, none"),
        ({"loss_type": "real"}, "loss_type is 'real'"),
        ({"off_policy_sequence_mask_delta": 0.1}, "Leave it out"),
        ({"top_p": 0.9}, "top_p is 0.9.*or sample with vLLM"),
        ({"top_k": 50}, "top_k is 50"),
        ({"multi_turn_scheduler": "math_tip_trick"}, "multi_turn_scheduler"),
    ],
)
def test_what_does_not_go_with_credit_per_token_is_refused(changes, message):
    from leaf.engines.swift import check_settings

    fine = {"advantage_estimator": "grpo", "scale_rewards": "group", "loss_type": "grpo", "top_p": 1.0, "top_k": -1}
    check_settings(SimpleNamespace(**fine), computes=True)
    with pytest.raises(ConfigError, match=message):
        check_settings(SimpleNamespace(**{**fine, **changes}), computes=True)


def test_a_rule_that_is_unknown_is_refused_when_the_plugin_is_read():
    from leaf.engines.swift import use_leaf

    with pytest.raises(ConfigError, match="credit rule 'leav' is unknown"):
        use_leaf("leav")

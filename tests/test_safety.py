"""Safe by default: nothing is unpickled, no code comes from data, and records meant for sharing name no machine."""

import ast
import json
import pickle
import re
import shutil
import socket
from pathlib import Path

import peft
import pytest
import soundfile
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import leaf
from leaf import LeafTrainer
from leaf.config import LeafConfig, RunConfig, load_recipe
from leaf.data import load
from leaf.data.audio import load_audio
from leaf.errors import ConfigError, ModelError
from leaf.model.own_adapter import refuse_pickle
from leaf.model.policy import Policy
from leaf.model.projector import load_projector, save_projector
from leaf.yaml_text import _Loader
from tests.helpers import tiny
from tests.helpers.project import save

SOURCE = Path(leaf.__file__).parent


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a folder with model/, and adapter/ for it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny.tiny_model()
    save(model, processor, folder / "model")
    Policy.wrap(model, processor, lora=peft.LoraConfig(r=2)).save_adapter(folder / "adapter")
    return folder


def pickled(folder, file, into, mark):
    """Copy a folder with its safetensors turned into a pickle that holds code."""
    into.mkdir()
    for one in folder.iterdir():
        if one.suffix != ".safetensors":
            (into / one.name).write_bytes(one.read_bytes())
    with (into / file).open("wb") as opened:
        pickle.dump(Bomb(mark), opened)
    return into


def test_a_pickled_checkpoint_is_refused_and_not_opened(checkpoint, tmp_path):
    Policy.load(checkpoint / "model")
    poisoned = pickled(checkpoint / "model", "pytorch_model.bin", tmp_path / "model", tmp_path / "mark")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*safetensors.*not read"):
        Policy.load(poisoned)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "x/model.safetensors.pt", 5, None])
def test_an_index_of_safetensors_that_points_at_a_pickle_is_refused(checkpoint, tmp_path, shard):
    poisoned = pickled(checkpoint / "model", "pytorch_model.bin", tmp_path / "model", tmp_path / "mark")
    index = poisoned / "model.safetensors.index.json"
    names = load_file(checkpoint / "model" / "model.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(ModelError, match=r"index\.json that points at .*Only safetensors are read"):
        Policy.load(poisoned)
    for content in ("{}", "[]", "{", '{"weight_map": []}'):
        index.write_text(content)
        with pytest.raises(ModelError, match="holds no weight_map"):
            Policy.load(poisoned)
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_drawn_at_random(checkpoint, tmp_path):
    lacking = tmp_path / "lacking"
    shutil.copytree(checkpoint / "model", lacking)
    weights = load_file(lacking / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.endswith("q_proj.weight")}
    assert len(kept) < len(weights)
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"lacks {len(weights) - len(kept)} of the model's weights \(.*q_proj\.weight"
    ):
        Policy.load(lacking)


def test_a_pickled_adapter_is_refused_and_not_opened(checkpoint, tmp_path):
    Policy.load(checkpoint / "model", adapter=checkpoint / "adapter")
    poisoned = pickled(checkpoint / "adapter", "adapter_model.bin", tmp_path / "adapter", tmp_path / "mark")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors. Only safetensors are read"):
        Policy.load(checkpoint / "model", adapter=poisoned)
    # The same for an adapter that a checkpoint brings along, in its root or in a folder of its own.
    inside = pickled(checkpoint / "adapter", "adapter_model.bin", tmp_path / "inside", tmp_path / "mark")
    for file in (checkpoint / "model").iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="Only safetensors are read"):
        Policy.load(inside)
    with pytest.raises(ModelError, match="Only safetensors are read"):
        refuse_pickle(tmp_path, "adapter")
    refuse_pickle(tmp_path)  # no adapter at all
    assert not (tmp_path / "mark").exists()


def test_a_pickled_projector_is_refused_and_not_opened(checkpoint, tmp_path):
    policy = Policy.load(checkpoint / "model")
    save_projector(policy, tmp_path / "projector.safetensors")
    load_projector(policy, tmp_path / "projector.safetensors")
    with (tmp_path / "projector.pt").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "mark"), file)
    with pytest.raises(ModelError, match=r"projector\.pt is not in safetensors: .*may hold code"):
        load_projector(policy, tmp_path / "projector.pt")
    assert not (tmp_path / "mark").exists()


def test_everything_a_run_writes_is_text_or_safetensors(checkpoint, tmp_path):
    run = _run(checkpoint, tmp_path)
    suffixes = {file.suffix for file in run.path.rglob("*") if file.is_file() and file.name != ".lock"}
    assert suffixes <= {".yaml", ".json", ".jsonl", ".safetensors", ".md"}
    for file in run.path.rglob("*.safetensors"):
        load_file(file)


def test_code_of_a_checkpoint_runs_only_where_the_recipe_says_so(checkpoint, monkeypatch):
    assert RunConfig().trust_remote_code is False
    asked = []

    def note(name, *arguments, trust_remote_code=None, **options):
        asked.append(trust_remote_code)
        raise OSError("stop here")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", note)
    for trust in (False, True):
        with pytest.raises(ModelError, match="stop here"):
            Policy.load(checkpoint / "model", trust_remote_code=trust)
    with pytest.raises(ModelError):
        Policy.load(checkpoint / "model")
    assert asked == [False, True, False]


def test_code_beside_the_weights_runs_only_if_trusted(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(checkpoint / "model", tmp_path / "own")
    file, mark = tmp_path / "own/config.json", tmp_path / "mark"
    described = json.loads(file.read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    file.write_text(json.dumps(described))
    (tmp_path / "own/own.py").write_text(
        f"from transformers import PretrainedConfig\nopen({str(mark)!r}, 'w').close()\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n"
    )
    for trust in (False, True):
        with pytest.raises(ModelError):  # trusted, it is no family that leaf knows
            Policy.load(tmp_path / "own", trust_remote_code=trust)
        assert mark.exists() == trust


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"])
def test_recipes_hold_no_code(tmp_path, tag):
    (tmp_path / "a.yaml").write_text(f"seed: !!{tag} ['{tmp_path}/mark']\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "a.yaml", [f"seed=!!{tag} ['{tmp_path}/mark']"])
    assert not (tmp_path / "mark").exists()


def test_data_names_no_code(tmp_path):
    """A column called rewards or plugins is a column; what looks like Python in a cell is text."""
    soundfile.write(tmp_path / "a.wav", torch.full((1600,), 0.1).numpy(), 16000)
    row = {"prompt": "__import__('os').mkdir('mark')", "audio": "a.wav", "reference": "{1 + 1}", "split": "train"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"rewards": "mine.py:f", "plugins": "mine.py"}))
    got = load(str(tmp_path / "a.jsonl"), "train")[0]
    assert (got["prompt"], got["reference"], got["plugins"]) == (row["prompt"], "{1 + 1}", "mine.py")


def calls_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}


def test_the_source_unpickles_and_evaluates_nothing():
    banned = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "yaml.unsafe_load", "yaml.full_load"}
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        assert not imported & {"pickle", "joblib", "dill", "marshal", "shelve"}, file
        for name, options in calls_of(tree):
            assert name not in banned, f"{file.name} calls {name}"
            if name == "yaml.load":
                assert ast.unparse(options["Loader"]) == "_Loader"
            assert "shell" not in options, f"{file.name} opens a shell in {name}"
            if name.endswith("from_pretrained"):
                trust = options.get("trust_remote_code", ast.Constant(False))
                assert not isinstance(trust, ast.Constant) or trust.value is False, file
            # What loads a model says so, or reads a GGUF file (`options`), which holds no code.
            if re.search(r"(AutoModel|auto_model|ForConditionalGeneration).*from_pretrained$", name):
                safe = options.get("use_safetensors")
                assert None in options or (isinstance(safe, ast.Constant) and safe.value is True), file
    assert issubclass(_Loader, yaml.SafeLoader)


def _run(checkpoint, tmp_path, **changes):
    """Train two steps on files, with a token in the environment of the run."""
    rows = []
    for i, row in enumerate(tiny.rows(3)):
        soundfile.write(tmp_path / f"{i}.wav", load_audio(row["audio"]), 16000)
        rows.append(
            {
                "id": str(i),
                "prompt": row["prompt"],
                "audio": [str(tmp_path / f"{i}.wav")],
                "utterance": "u",
                "reference": row["reference"],
            }
        )
    values = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "prompts_per_rollout": 2,
        "num_completions": 3,
        "max_new_tokens": 5,
        "lora_r": 2,
        "device": "cpu",
        "eval_every": 1,
        "eval_items": 2,
        "record_every": 1,
    }
    config = LeafConfig(**(values | changes))
    trainer = LeafTrainer(checkpoint / "model", ["chrf"], config, rows, rows[:2], say=lambda line: None)
    return trainer.train()


def test_records_for_sharing_name_neither_paths_nor_machine_nor_tokens(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    run = _run(checkpoint, tmp_path)
    for name in ("metrics.jsonl", "groups.jsonl", "validation.jsonl", "versions.json"):
        text = (run.path / name).read_text()
        assert text
        for secret in (str(tmp_path), str(Path.home()) + "/", "hf_secret", socket.gethostname()):
            assert secret not in text, (name, secret)
    group = json.loads((run.path / "groups.jsonl").read_text().splitlines()[0])
    assert group["audio"] == [f"{group['id']}.wav"]
    # An adapter says which model it belongs to, as peft wants it, and no token.
    for file in run.path.rglob("*"):
        if file.is_file():
            assert b"hf_secret" not in file.read_bytes(), file

"""Adapters: a saved one is taken whole or not at all, and the reference is the model as loaded under all settings."""

import json
import shutil
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from leaf.config import LeafConfig
from leaf.errors import LeafError, ModelError
from leaf.model.checks import check_policy
from leaf.model.from_recipe import recipe_lora
from leaf.model.merging import write_merged
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.model.scoring import score
from tests.helpers import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with an adapter of the tiny model."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    lora = peft.LoraConfig(r=2, init_lora_weights=False)
    Policy.wrap(*tiny.tiny_model(), lora=lora).save_adapter(folder)
    (folder / "checksums.json").unlink()  # as an adapter of somebody else, in which more than a checksum is wrong
    return folder


def loaded(adapter):
    return Policy.wrap(*tiny.tiny_model(), adapter=adapter)


def copied(saved, into, **tensors):
    """Copy an adapter; each keyword names a change of its tensors."""
    shutil.copytree(saved, into)
    return into


def rename(saved, into, change):
    shutil.copytree(saved, into)
    tensors = load_file(into / "adapter_model.safetensors")
    save_file(change(tensors), into / "adapter_model.safetensors")
    return into


def without_first(tensors):
    return {name: value for name, value in tensors.items() if name != sorted(tensors)[0]}


CHANGES = {
    "renamed": lambda t: {name.replace(".layers.", ".blocks."): value for name, value in t.items()},
    "a tensor is missing": without_first,
    "a tensor too many": lambda t: t | {sorted(t)[0].replace("layers.0", "layers.9"): t[sorted(t)[0]] + 0},
    "no tensors": lambda t: {},
    "another rank": lambda t: {name: value.repeat(2, 2) for name, value in t.items()},
    "not finite": lambda t: {name: value / 0 for name, value in t.items()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_adapter_that_does_not_fit_is_refused(saved, tmp_path, change):
    adapter = rename(saved, tmp_path / "adapter", CHANGES[change])
    with pytest.raises(ModelError, match=r"The adapter .*(does not fit the model|cannot be loaded|not finite)"):
        loaded(adapter)


def test_a_damaged_adapter_ends_in_one_sentence(saved, tmp_path):
    """Whatever of its files is cut short, emptied or of another kind."""
    loaded(saved)
    weights, settings = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    whole, config = weights.read_bytes(), settings.read_text()
    damaged = [(weights.name, whole[: len(whole) * part // 7]) for part in range(7)]
    damaged += [(settings.name, config[: len(config) * part // 7].encode()) for part in range(7)]
    fields = json.loads(config)
    for name, value in (
        ("r", "two"), ("r", 0), ("r", 3), ("lora_alpha", None), ("target_modules", None), ("target_modules", "["),
        ("target_modules", 5), ("peft_type", "LOHA"), ("peft_type", "NONE"), ("peft_type", None), ("bias", "all"),
        ("init_lora_weights", "pissa"), ("modules_to_save", ["multi_modal_projector"]), ("use_dora", True),
        ("rank_pattern", 3), ("exclude_modules", "["), ("layer_replication", [[0, 1], [0, 2]]),
    ):  # fmt: skip
        damaged.append((settings.name, json.dumps(fields | {name: value}).encode()))
    damaged += [(settings.name, b"[]"), (settings.name, b"\xff\xfe"), (settings.name, b"{}")]
    for number, (file, content) in enumerate(damaged):
        adapter = copied(saved, tmp_path / str(number))
        (adapter / file).write_bytes(content)
        with pytest.raises(LeafError) as caught:
            loaded(adapter)
        assert len(str(caught.value)) < 700, content
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(LeafError, match="adapter"):
            loaded(missing)


TAKEN = {
    "default": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 2}},
    "dropout": {"lora_dropout": 0.3},
    "one layer": {"layers_to_transform": 1},
    "list of layers": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "lora_bias": {"lora_bias": True},
    "task": {"task_type": "CAUSAL_LM"},
    "expression": {"target_modules": ".*q_proj"},
}


def test_a_recipe_chooses_the_layers_that_get_an_adapter():
    policy = Policy.wrap(*tiny.tiny_model(), lora=recipe_lora(LeafConfig(layers_to_transform=[1])))
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".language_model.layers.1." in name for name in trained)


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.parametrize("settings", TAKEN)
def test_the_reference_is_the_base_and_the_policy_starts_there(settings):
    """Under every setting that is taken: before training, and after steps that change the policy."""
    model, processor = tiny.tiny_model()
    rows = tiny.rows(2)
    plain = Policy.wrap(*tiny.tiny_model())
    policy = Policy.wrap(model, processor, lora=peft.LoraConfig(r=2, **TAKEN[settings]))
    prompts = plain.embed(rows)
    groups = sample(plain, prompts, num_completions=3, max_new_tokens=6, generator=torch.Generator().manual_seed(0))
    trees = [group.tree for group in groups]
    with torch.no_grad():
        base = score(plain, prompts, trees).log_probs

    def distance(log_probs):
        return max(float((a - b).detach().abs().max()) for a, b in zip(log_probs, base, strict=True))

    assert distance(score(policy, prompts, trees).log_probs) < 1e-4  # KL of step 1 is 0
    check_policy(policy, rows)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        policy.train()
        torch.stack([values.sum() for values in score(policy, policy.embed(rows), trees).log_probs]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()
    assert distance(score(policy, prompts, trees).log_probs) > 0.1
    with torch.no_grad(), policy.reference():
        assert distance(score(policy, policy.embed(rows), trees).log_probs) < 1e-5
    adapted = {name for name, _ in policy.named_parameters() if "lora_A" in name}
    if settings in ("one layer", "list of layers"):
        wanted = 1 if settings == "one layer" else 0
        assert all(f"language_model.layers.{wanted}." in name for name in adapted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        *({"init_lora_weights": one} for one in ("pissa", "pissa_niter_4", "olora", "lora_ga")),
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["multi_modal_projector"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"layer_replication": [[0, 1], [0, 2]]},
        {"target_parameters": ["lm_head.weight"]},
        {"alora_invocation_tokens": [1]},
    ],
    ids=str,
)
def test_settings_that_would_move_the_reference_are_refused_by_name(settings):
    model, processor = tiny.tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=next(iter(settings))):
        Policy.wrap(model, processor, lora=peft.LoraConfig(r=2, **settings))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [{"init_lora_weights": "pissa"}, {"bias": "all"}, {"modules_to_save": ["multi_modal_projector"]}],
    ids=str,
)
def test_the_start_up_checks_refuse_them_in_a_policy_that_somebody_else_made(settings):
    model, processor = tiny.tiny_model()
    lora = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj", **settings)
    with pytest.raises(ModelError, match=next(iter(settings))):
        check_policy(Policy(peft.get_peft_model(model, lora), processor), tiny.rows(2))


def test_a_part_that_is_trained_beside_the_adapter_is_refused():
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    policy.base.model.language_model.norm.weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"language_model\.norm\.weight would be trained"):
        check_policy(policy, tiny.rows(2))


def test_an_adapter_outside_the_language_model_is_refused(tmp_path):
    model, _ = tiny.tiny_model()
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter is on model\.audio_tower.* too"):
        loaded(tmp_path / "adapter")


def test_a_second_adapter_on_one_model_object_is_refused():
    model, processor = tiny.tiny_model()
    Policy.wrap(model, processor)  # nothing is trained here, so nothing is carried on
    Policy.wrap(model, processor, lora=peft.LoraConfig(r=2))
    for lora in (peft.LoraConfig(r=2), None):
        with pytest.raises(ModelError, match=r"already carries an adapter.*Load the model again"):
            Policy.wrap(model, processor, lora=lora)


def test_a_policy_that_was_trained_before_says_how_far_it_is_from_its_reference():
    fresh = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    assert "its reference" not in check_policy(fresh, tiny.rows(2))[0]
    trained = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2, init_lora_weights=False))
    assert "the policy starts" in check_policy(trained, tiny.rows(2))[0]


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_settings_that_peft_cannot_use_end_in_one_sentence(tmp_path):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"target_modules": r"model\.audio_tower\..*q_proj"}, r"linear layers of model\.language_model\.layers only"),
        ({"target_modules": "["}, "cannot put the adapter"),
        ({"layers_to_transform": [2]}, "allowed are numbers from 0 to 1"),
        ({"layers_to_transform": []}, "allowed are numbers from 0 to 1"),
    ]
    for settings, message in refused:
        with pytest.raises(ModelError, match=message):
            Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2, **settings))
    biased = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2, lora_bias=True))
    with pytest.raises(ModelError, match=r"cannot be merged: .*bias"):
        write_merged(biased, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_changed_since_it_was_written_is_named(saved, tmp_path):
    def flip(name, at):
        content = bytearray((tmp_path / "a" / name).read_bytes())
        content[at] ^= 1
        (tmp_path / "a" / name).write_bytes(content)

    for name, change, said in (
        (
            "adapter_model.safetensors",
            lambda name: flip(name, -9),
            "the checksum of adapter_model.safetensors is wrong",
        ),
        ("adapter_config.json", lambda name: flip(name, 9), "the checksum of adapter_config.json is wrong"),
        ("adapter_config.json", lambda name: (tmp_path / "a" / name).unlink(), "adapter_config.json is missing"),
        ("checksums.json", lambda name: (tmp_path / "a" / name).write_text("[]"), "checksums.json holds no list"),
        ("checksums.json", lambda name: (tmp_path / "a" / name).write_bytes(b"\xff"), "is not as it was written"),
    ):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        loaded(saved).save_adapter(tmp_path / "a")
        loaded(tmp_path / "a")
        change(name)
        with pytest.raises(ModelError, match=rf"{said}.*remove its checksums\.json"):
            loaded(tmp_path / "a")

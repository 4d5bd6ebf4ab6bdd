"""`TTFSModel`: saving, finding and loading, bit for bit."""

import shutil
from collections import OrderedDict
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ttfs_triton
from tests.model.test_files import assert_same
from ttfs_triton.atomic import write_bytes
from ttfs_triton.model import BaseModel, LoadError, TTFSModel, find_model
from ttfs_triton.nn import DFTLinear, LatencyEncoder, NetworkConfig, Readout

CONFIG = NetworkConfig("4C3-P2-8", image_size=(8, 8), classes=4, dropout=0.5)


@pytest.fixture
def model():
    return TTFSModel(CONFIG, class_names=list("abcd"), dataset="sample", base_model=BaseModel("a", "b")).eval()


def assert_same_model(one, other):
    assert one.description == other.description
    assert_same(one.state_dict(), other.state_dict())


def test_top_level_name():
    assert ttfs_triton.TTFSModel is TTFSModel
    with pytest.raises(AttributeError, match="has no attribute 'TTFSNet'"):
        ttfs_triton.TTFSNet  # noqa: B018


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_model_survives_a_folder(model, tmp_path, kind):
    model.to(kind).save_pretrained(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    loaded = TTFSModel.from_pretrained(tmp_path / "a")
    assert_same_model(loaded, model)
    assert not loaded.training
    loaded.save_pretrained(tmp_path / "a")  # the same bytes


def test_run_its_best_folder_and_its_weights_are_the_same_model(trained):
    best = load_file(trained / "best" / "model.safetensors")
    for path, name in ((str(trained), "run"), (trained / "best", "best"), (trained / "best/model.safetensors", "best")):
        model = TTFSModel.from_pretrained(path)
        assert_same(model.state_dict(), best)
        assert (model.description.dataset, find_model(path).name) == ("sample", name)


def test_compiled_parts_save_plainly(model, tmp_path):
    expected = model.state_dict()
    model.network.features = torch.compile(model.network.features, backend="eager")
    assert any("_orig_mod" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    assert_same(TTFSModel.from_pretrained(tmp_path).state_dict(), expected)


def test_another_model_is_never_replaced_unasked(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)  # the same again
    other_weights = TTFSModel(CONFIG, class_names=list("abcd"), dataset="sample", base_model=BaseModel("a", "b"))
    same_weights = TTFSModel(CONFIG.replace(dropout=0.0), class_names=list("abcd"))
    same_weights.load_state_dict(model.state_dict())
    for other in (other_weights, same_weights):
        with pytest.raises(ValueError, match=r"save_directory must hold no other model; got .* Give overwrite=True"):
            other.save_pretrained(tmp_path)
        assert_same_model(TTFSModel.from_pretrained(tmp_path), model)
    same_weights.save_pretrained(tmp_path, overwrite=True)
    assert TTFSModel.from_pretrained(tmp_path).config.dropout == 0


def test_network_with_a_module_of_that_name_keeps_its_keys():
    inner = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=DFTLinear(64, 8)))
    network = nn.Sequential(OrderedDict(encoder=LatencyEncoder(), network=inner, fc=Readout(8, 4)))
    model = TTFSModel.from_network(network, image_shape=(1, 8, 8))
    assert model.state_dict().keys() == network.state_dict().keys()
    assert model.load_state_dict(network.state_dict()).missing_keys == []


def test_half_written_models_do_not_load(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "a")
    other = TTFSModel(CONFIG, class_names=list("abcd"))

    def full(path, content, failing):
        if path.name == failing:
            raise OSError("no space left")
        write_bytes(path, content)

    for failing in ("config.json", "model.safetensors"):
        monkeypatch.setattr("ttfs_triton.model.files.write_bytes", partial(full, failing=failing))
        with pytest.raises(OSError, match="no space left"):
            other.save_pretrained(tmp_path / "a", overwrite=True)
        if failing == "config.json":
            assert_same_model(TTFSModel.from_pretrained(tmp_path / "a"), model)
    with pytest.raises(LoadError, match="must be as it was written with the weights"):
        TTFSModel.from_pretrained(tmp_path / "a")


def test_what_is_not_there_is_refused(tmp_path, trained):
    for source, message in (
        (tmp_path / "nowhere", "there is nothing at"),
        ("./nowhere", "there is nothing at"),
        ("org/model.safetensors", "there is nothing at"),
        (tmp_path, r"must hold best/model\.safetensors \(a run\) or model\.safetensors; it has neither"),
        (__file__, r"path must be a folder or a \.safetensors file"),
    ):
        with pytest.raises(LoadError, match=message):
            TTFSModel.from_pretrained(source)
    with pytest.raises(LoadError, match="revision must be None for a model on this machine; got 'main'"):
        TTFSModel.from_pretrained(trained, revision="main")
    with pytest.raises(LoadError, match="revision must be given once"):
        TTFSModel.from_pretrained("org/name@one", revision="two")
    shutil.copytree(trained / "best", tmp_path / "copy")
    (tmp_path / "copy" / "config.json").unlink()
    with pytest.raises(LoadError, match="must describe the network"):
        TTFSModel.from_pretrained(tmp_path / "copy")

"""`TTFSModel`: saving, finding and loading, bit for bit."""

import json
import re
import shutil
from collections import OrderedDict
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ttfs_triton
from tests.bench.modules import modules
from tests.model.test_files import assert_same
from ttfs_triton.atomic import write_bytes
from ttfs_triton.convert import WeightsError, open_weights
from ttfs_triton.evaluate.load import load_network
from ttfs_triton.model import BaseModel, LoadError, TTFSModel, bundled_facts, bundled_names, find_model
from ttfs_triton.model.files import FOLDER, MOST_BYTES, checksum, read_weights
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
    same_weights = TTFSModel(CONFIG.replace(dropout=0.0))
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
    model.save_pretrained(tmp_path)

    def full(path, content, failing):
        if path.name == failing:
            raise OSError("no space left")
        write_bytes(path, content)

    for failing in ("config.json", "model.safetensors"):
        assert_same_model(TTFSModel.from_pretrained(tmp_path), model)
        monkeypatch.setattr("ttfs_triton.model.files.write_bytes", partial(full, failing=failing))
        with pytest.raises(OSError, match="no space left"):
            TTFSModel(CONFIG).save_pretrained(tmp_path, overwrite=True)
    with pytest.raises(LoadError, match="must be as it was written with the weights"):
        TTFSModel.from_pretrained(tmp_path)


def test_what_is_not_there_is_refused(tmp_path, trained):
    shutil.copy(trained / "best" / "model.safetensors", tmp_path / "alone.safetensors")
    for source, options, message in (
        (tmp_path / "nowhere", {}, "there is nothing at"),
        ("./nowhere", {}, "there is nothing at"),
        ("org/model.safetensors", {}, "there is nothing at"),
        (tmp_path, {}, r"must hold best/model\.safetensors \(a run\) or model\.safetensors; it has neither"),
        (__file__, {}, r"path must be a folder or a \.safetensors file"),
        (trained, {"revision": "main"}, "revision must be None for a model on this machine; got 'main'"),
        ("org/name@one", {"revision": "two"}, "revision must be given once"),
        (tmp_path / "alone.safetensors", {}, "must describe the network"),
    ):
        with pytest.raises(LoadError, match=message):
            TTFSModel.from_pretrained(source, **options)


# ---- networks that come with the package: whole, small, taken wherever a trained network is; and how one is made

(bundle,) = modules("bundle")
NAMES = bundled_names()


@pytest.mark.parametrize("name", NAMES)
def test_bundled_network_is_what_its_facts_say(name):
    model, facts = TTFSModel.from_pretrained(f"bundled:{name}"), bundled_facts(name)
    tensors = read_weights(FOLDER / name / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert checksum(tensors) == facts["tensors_sha256"]
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[key].float())
    assert (model.config.weight_standardisation, model.description.dataset) == (False, facts["dataset"])
    assert {"test_accuracy", "test_images", "sparsity", "sparsity_as_published", "made_by"} <= facts.keys()
    assert len(model.classify(torch.rand(2, model.config.in_channels, *model.config.image_size))) == 2


def test_bundled_networks_are_small_and_name_nobody():
    assert {"cnn1-mnist", "vgg9-cifar10"} <= set(NAMES)
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) <= MOST_BYTES
    for file in FOLDER.glob("*/*.json"):
        assert not re.search(r"(?<![\w.])/(?!s)\w+/", file.read_text()), file


def test_unknown_names_are_refused_and_a_local_folder_comes_first(tmp_path, monkeypatch):
    for load in (TTFSModel.from_pretrained, load_network, open_weights):
        for name in ("nothing", "."):
            with pytest.raises((LoadError, WeightsError), match=rf"one of .*bundled:cnn1-mnist.*; got bundled:{name}"):
                load(f"bundled:{name}")
    monkeypatch.chdir(tmp_path)
    TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8))).save_pretrained("bundled:cnn1-mnist")
    assert TTFSModel.from_pretrained("bundled:cnn1-mnist").config.specification == "4C3-P2-8"


@torch.no_grad()
def test_bundle_is_the_run_folded_and_rounded_and_small(run, tmp_path, monkeypatch, capsys):
    options = [str(run), "a-name", "--output-dir", str(tmp_path / "networks"), "--commit", "abc1234"]
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "MOST_BYTES", 1000)
        with pytest.raises(SystemExit):
            bundle.main(options)
    assert "all networks together must have at most 1,000 bytes; got" in capsys.readouterr().err
    assert not (tmp_path / "networks").exists()
    bundle.main(options)
    folder, whole = tmp_path / "networks" / "a-name", TTFSModel.from_pretrained(run)
    facts, tensors = json.loads((folder / "facts.json").read_text()), read_weights(folder / "model.safetensors")
    assert (facts["test_images"], facts["training"]["commit"]) == (1000, "abc1234")  # all images; the run scored some
    assert facts["tensors_sha256"] == checksum(tensors)
    images = torch.rand(32, 1, 28, 28)
    torch.testing.assert_close(TTFSModel.from_pretrained(folder).float()(images), whole(images), atol=0.1, rtol=0)
    for layer, name in ((whole.features.conv1, "features.conv1.weight"), (whole.readout, "readout.weight")):
        assert torch.equal(layer.effective_weight().bfloat16(), tensors[name])

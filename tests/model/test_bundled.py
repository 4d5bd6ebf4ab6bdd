"""Networks that come with the package: whole, small, taken wherever a trained network is; and how one is made."""

import json
import re

import pytest
import torch

from tests.bench.modules import modules
from ttfs_triton.convert import WeightsError, open_weights
from ttfs_triton.evaluate.load import load_network
from ttfs_triton.model import LoadError, TTFSModel, bundled_facts, bundled_names, find_model
from ttfs_triton.model.files import FOLDER, MOST_BYTES, checksum, read_weights
from ttfs_triton.nn import NetworkConfig

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
    assert not model.config.weight_standardisation
    assert model.description.dataset == facts["dataset"]
    assert facts["training"]["settings"]["model"]
    assert {"test_accuracy", "test_images", "sparsity_as_published", "made_by"} <= facts.keys()
    assert 0 < facts["sparsity"] < 1
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
    with pytest.raises(LoadError, match="revision must be None for a model on this machine; got 'main'"):
        find_model("bundled:cnn1-mnist", revision="main")
    monkeypatch.chdir(tmp_path)
    TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8))).save_pretrained("bundled:cnn1-mnist")
    assert TTFSModel.from_pretrained("bundled:cnn1-mnist").config.specification == "4C3-P2-8"


# ---- bench/bundle.py


@torch.no_grad()
def test_bundle_is_the_run_folded_and_rounded(run, tmp_path, capsys):
    bundle.main([str(run), "a-name", "--output-dir", str(tmp_path / "networks"), "--commit", "abc1234"])
    folder = tmp_path / "networks" / "a-name"
    facts = json.loads((folder / "facts.json").read_text())
    assert "bundled:a-name" in capsys.readouterr().out
    assert facts["test_images"] == 1000  # all, where the run had scored a hundred
    assert facts["training"]["commit"] == "abc1234"
    assert facts["training"]["settings"]["psp_persistence"] == 0.25
    tensors = read_weights(folder / "model.safetensors")
    assert facts["tensors_sha256"] == checksum(tensors)
    whole, ours = TTFSModel.from_pretrained(run), TTFSModel.from_pretrained(folder).float()
    assert not ours.config.weight_standardisation
    assert ours.description.dataset == "sample"
    images = torch.rand(32, 1, 28, 28)
    torch.testing.assert_close(ours(images), whole(images), atol=0.1, rtol=0)
    for layer, name in ((whole.features.conv1, "features.conv1.weight"), (whole.readout, "readout.weight")):
        assert torch.equal(layer.effective_weight().bfloat16(), tensors[name])


def test_bundle_that_is_too_large_or_of_no_whole_run_leaves_nothing(run, tmp_path, monkeypatch):
    options = bundle.BundleOptions(run=str(run), name="a", output_dir=tmp_path / "networks")
    monkeypatch.setattr(bundle, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"all networks together must have at most 1,000 bytes; got .*\. Bundle"):
        bundle.bundle(options)
    (run / "summary.json").unlink()
    with pytest.raises(LoadError, match=r"summary\.json must be a run's final figures"):
        bundle.bundle(options)
    assert not (tmp_path / "networks").exists()

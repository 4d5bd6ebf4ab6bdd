"""`recipes/bundle.py`: a run becomes a network of the package, whole and small enough, or nothing is written."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.trained import _own_cache, run, trained  # noqa: F401
from ttfs_triton.evaluation import LoadError
from ttfs_triton.model import TTFSModel
from ttfs_triton.model.weights import checksum, read_weights

SCRIPT = Path(__file__).parents[2] / "recipes" / "bundle.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("bundle", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_bundle_is_the_run_folded_and_rounded(script, run, tmp_path, capsys):  # noqa: F811
    script.main([str(run), "a-name", "--output-dir", str(tmp_path / "networks"), "--commit", "abc1234"])
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


def test_bundle_that_is_too_large_leaves_nothing(script, run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(script, "MOST_BYTES", 1000)
    with pytest.raises(SystemExit):
        script.main([str(run), "a", "--output-dir", str(tmp_path / "networks")])
    with pytest.raises(ValueError, match=r"all networks together must have at most 1,000 bytes; got .*\. Bundle"):
        script.bundle(script.BundleOptions(run=str(run), name="a", output_dir=tmp_path / "networks"))
    assert not (tmp_path / "networks").exists()


def test_run_that_has_not_ended_is_refused(script, run, tmp_path):  # noqa: F811
    (run / "summary.json").unlink()
    with pytest.raises(LoadError, match=r"summary\.json must be there and readable"):
        script.bundle(script.BundleOptions(run=str(run), name="a", output_dir=tmp_path))

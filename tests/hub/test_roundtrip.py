"""Publish over HTTP and load: the same weights bit for bit; and requests that the Hub refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from tests.hub.server import Repository
from ttfs_triton import TTFSModel
from ttfs_triton.model import LoadError
from ttfs_triton.model.hub import HubError


def test_hub_gives_the_same_model_on_a_device_and_takes_it_without_its_run(published, hub, here, trained, device):
    images, ours = torch.rand(3, 1, 28, 28), TTFSModel.from_pretrained(trained)
    first = list(hub.repositories[published].commits)[1]
    for source, options in ((f"{published}@main", {}), (published, {"revision": first}), (published, {})):
        model = TTFSModel.from_pretrained(source, device=device, **options)
        logits = model(images.to(device))
        assert (logits.device, model.training) == (device, False)
        torch.testing.assert_close(logits.cpu(), ours(images), rtol=1e-4, atol=1e-4)
    assert (model.description.dataset, model.description.library["name"]) == ("sample", "ttfs-triton")
    pushed = f"alice/from-{device.type}"
    assert model.push_to_hub(pushed, license="mit").startswith(f"{hub.url}/{pushed}/commit/")
    assert hub.repositories[pushed].private
    assert set(hub.files(pushed)) == {"model.safetensors", "config.json", "README.md"}
    assert b"Not evaluated." in hub.files(pushed)["README.md"]
    kept = ours.state_dict()
    for name in (pushed, published):  # bit for bit
        tensors = load(hub.files(name)["model.safetensors"])
        assert tensors.keys() == kept.keys()
        assert all(torch.equal(value, kept[key]) for key, value in tensors.items())


def test_code_on_the_card_runs(published, hub, run_code, tmp_path):
    (code,) = [part.partition("```")[0] for part in hub.files(published)["README.md"].decode().split("```python\n")[1:]]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert run_code(code).startswith("Classification(")


def test_cache_serves_without_a_network(published, hub, here, trained, monkeypatch):
    TTFSModel.from_pretrained(published)
    hub.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found, expected = (TTFSModel.from_pretrained(source).state_dict() for source in (published, trained))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    with pytest.raises(HubError, match="download: org/other must be in the cache while HF_HUB_OFFLINE is set"):
        TTFSModel.from_pretrained("org/other")
    with pytest.raises(HubError, match="publish: the Hub must be reachable; HF_HUB_OFFLINE is set"):
        TTFSModel.from_pretrained(published).push_to_hub("org/other")
    assert hub.log == []


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("org/nothing", {}, "download: org/nothing must exist .* There is no local folder org/nothing either"),
        ("org/model@nothing", {}, "download: revision must exist in org/model; it does not"),
        ("org/model", {"token": "hf_guest"}, "download: org/model must exist on the Hub, and hold the file"),
        ("org/mo..del", {}, r"download: repo_id must be a valid name, owner/name; got 'org/mo\.\.del'"),
        ("org/empty", {}, r"load: org/empty must hold config\.json and model\.safetensors"),
        ("org/damaged", {}, "load: .* its checksum differs"),
        ("org/cut", {}, "download: .*org/cut"),
    ],
)
def test_what_cannot_be_loaded_is_told(published, hub, here, source, options, message):
    files = dict(hub.files(published))
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\xff"
    hub.repositories |= {"org/empty": Repository(True), "org/damaged": Repository(True, {"1" * 40: files})}
    hub.drop = "/api/models/org/cut"
    with pytest.raises((HubError, LoadError), match=f"^{message}"):
        TTFSModel.from_pretrained(source, **options)

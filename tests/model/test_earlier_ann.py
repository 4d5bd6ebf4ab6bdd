"""ANNs of earlier versions load as the network at σ = 0: same logits, same decisions."""

import json

import pytest
import torch

from tests.model.earlier_ann import EarlierANN
from ttfs_triton.model import TTFSModel
from ttfs_triton.model.weights import LoadError, weight_bytes
from ttfs_triton.nn import NetworkConfig

COLOURS = {"in_channels": 3, "image_size": (8, 8), "classes": 4}
ANALOG = COLOURS | {"encoder": "analog", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


@torch.no_grad()
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("specification", "options"),
    [
        ("6C3-P2-8C3-P2-12", COLOURS),
        ("4C3-(4C3-4C3)-A2-6C3-(6C3s2-7C3)-12-(9-12)", ANALOG),
        ("6C3-(6C3-6C3)-A", ANALOG),
    ],
    ids=["latency", "analog", "average"],
)
def test_ann_computes_what_it_did(tmp_path, batch_norm, standardised, bias, specification, options):
    options = options | {"batch_norm": batch_norm, "weight_standardisation": standardised, "bias": bias}
    ann, images = EarlierANN(NetworkConfig(specification, **options)), torch.rand(16, 3, 8, 8)
    model = TTFSModel.from_pretrained(ann.write(tmp_path / "run"))
    expected = ann(images)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(images).argmax(1), expected.argmax(1))
    assert model.config.neuron.psp_persistence == 0
    assert model.config.weight_standardisation == (standardised and not batch_norm)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(TTFSModel.from_pretrained(tmp_path / "saved")(images), model(images))


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("features.conv2.batch_norm.running_var", torch.ones(5), "must hold a batch norm that fits its layer"),
        ("features.conv2.batch_norm.bias", None, "must hold a batch norm that fits its layer"),
        ("features.conv3.batch_norm.bias", torch.ones(2), "features.conv3"),
        ("features.fc1.weight", torch.ones(12, 9), "fc1"),
    ],
)
def test_batch_norm_of_another_network_is_refused(tmp_path, key, tensor, message):
    ann = EarlierANN(NetworkConfig("6C3-P2-8C3-P2-12", batch_norm=True, **COLOURS))
    ann.tensors = {name: value for name, value in ann.tensors.items() if name != key}
    ann.tensors |= {} if tensor is None else {key: tensor}
    with pytest.raises(LoadError, match=message):
        TTFSModel.from_pretrained(ann.write(tmp_path / "run"))


def test_batch_norm_must_be_of_an_ann(tmp_path):
    """Elsewhere a network says whether it has one."""
    model = TTFSModel(NetworkConfig("6C3-P2-12", **COLOURS))
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["network"]["neuron"] == "dft"
    (tmp_path / "model.safetensors").write_bytes(weight_bytes(model.state_dict() | {"x.batch_norm.y": torch.ones(1)}))
    with pytest.raises(LoadError):
        TTFSModel.from_pretrained(tmp_path)

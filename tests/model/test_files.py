"""A model's two files as one: every damaged bit refused, nothing allocated for what the weights do not fill."""

import hashlib
import json
from functools import cache

import pytest
import torch

from ttfs_triton.model import BaseModel, LoadError, ModelDescription, TTFSModel
from ttfs_triton.model.files import (
    CONFIG_CHECKSUM,
    MAX_CONFIG_BYTES,
    model_bytes,
    network_tensors,
    read_model,
    write_model,
)
from ttfs_triton.model.weights import weight_bytes
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

NETWORK = NetworkConfig("2C3-P2-4", image_size=(4, 4), classes=2)
DESCRIPTION = ModelDescription.of(NETWORK, class_names=["a\x1f", "ç"], dataset="sample", base_model=BaseModel("a", "b"))


@pytest.fixture
def network():
    return TTFSNetwork(NETWORK)


@pytest.fixture
def folder(tmp_path, network):
    write_model(tmp_path, network.state_dict(), DESCRIPTION)
    return tmp_path


def paths(folder):
    return folder / "config.json", folder / "model.safetensors"


def rewrite(folder, tensors, **changes):
    """A folder with a changed config.json, and weights that know it."""
    config, weights = paths(folder)
    content = json.dumps(DESCRIPTION.to_dict() | changes).encode()
    config.write_bytes(content)
    weights.write_bytes(weight_bytes(tensors, {CONFIG_CHECKSUM: hashlib.sha256(content).hexdigest()}))


def test_model_survives_its_files(folder, network):
    description, tensors = read_model(*paths(folder))
    assert description == DESCRIPTION
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
    assert model_bytes(tensors, description) == {path.name: path.read_bytes() for path in paths(folder)}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_every_flipped_bit_is_refused(folder, name, monkeypatch):
    monkeypatch.setattr("ttfs_triton.model.files.network_tensors", cache(network_tensors))  # seconds, not minutes
    content = bytearray((folder / name).read_bytes())
    accepted = []
    with (folder / name).open("r+b", buffering=0) as file:
        for place in range(8 * len(content)):
            byte, bit = divmod(place, 8)
            file.seek(byte)
            file.write(bytes([content[byte] ^ 1 << bit]))
            try:
                read_model(*paths(folder))
                accepted.append(place)
            except LoadError:
                pass
            file.seek(byte)
            file.write(content[byte : byte + 1])
    assert accepted == []
    assert read_model(*paths(folder))[0] == DESCRIPTION


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_cut_off_configurations_are_refused(folder, cut):
    config, _ = paths(folder)
    config.write_bytes(config.read_bytes()[:cut])
    with pytest.raises(LoadError, match=r"config\.json must be as it was written with the weights; its checksum"):
        read_model(*paths(folder))


def test_configuration_of_another_model_is_refused(folder, network, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_model(other, network.state_dict(), DESCRIPTION.replace(dataset=None))
    with pytest.raises(LoadError, match=r"its checksum differs\. Copy or download both again"):
        read_model(other / "config.json", folder / "model.safetensors")


def test_weights_that_do_not_know_their_configuration_are_refused(folder, network):
    paths(folder)[1].write_bytes(weight_bytes(network.state_dict()))
    with pytest.raises(LoadError, match=r"must be those that it was written with; their header has format, tensors_"):
        read_model(*paths(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json must be what training wrote; it is no JSON"),
        (b"\xff\xfe\xff", "it is no JSON"),
        (b"[1]", "format_version must be 3 or 4; got None"),
        (b'{"a": ' * 100_000, "it is no JSON"),
        (b'{"format_version": ' + b"1" * 5000 + b"}", "it is no JSON"),
        (b'{"format_version": 99}', r"format_version must be 3 or 4; got 99\. Upgrade ttfs-triton"),
        (b" " * (MAX_CONFIG_BYTES + 1), "must have at most 16777216 bytes; it has more"),
    ],
)
def test_files_that_are_no_description_are_refused(folder, network, content, message):
    config, weights = paths(folder)
    config.write_bytes(content)
    weights.write_bytes(weight_bytes(network.state_dict()))
    with pytest.raises(LoadError, match=message):
        read_model(config, weights)


def test_missing_and_unreadable_configurations_say_what_they_are_for(folder):
    config, weights = paths(folder)
    config.unlink()
    with pytest.raises(LoadError, match="must say what network the weights are of; there is none"):
        read_model(config, weights)
    config.mkdir()
    with pytest.raises(LoadError, match=r"config\.json must be readable"):
        read_model(config, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"specification": "3C3-P2-4"},
            r"conv1\.weight torch.float32 \[2, 1, 3, 3\], not .* \[3, 1, 3, 3\]",
        ),
        ({"specification": "4"}, r"features\.conv1\.bias unexpected; .*fc1\.weight torch\.float32"),
        ({"specification": "2C3-2C3-P2-4"}, r"features\.conv2\.bias missing"),
        ({"specification": "1048576C3-1048576C1-8"}, "weights must be at most 2147483648"),
        ({"image_size": [2, 2]}, r"features\.fc1\.weight torch.float32 \[4, 8\], not torch.float32 \[4, 2\]"),
        ({"image_size": [1, 1]}, "image_size must be large enough for every layer"),
        ({"classes": 10**12}, "classes is not usable: Input should be less than or equal to 1048576"),
    ],
)
def test_networks_are_compared_before_memory_is_taken(folder, network, change, message, monkeypatch):
    values = NETWORK.to_dict() | change
    size = values["image_size"]
    names = [str(place) for place in range(min(values["classes"], 10))]
    preprocessing = {"size": size, "mode": "L"}
    rewrite(folder, network.state_dict(), network=values, class_names=names, preprocessing=preprocessing)
    monkeypatch.setattr("ttfs_triton.model.files.read_weights", None)
    with pytest.raises(LoadError, match=message):
        TTFSModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8])
def test_other_types_are_refused(folder, network, kind):
    tensors = {name: tensor.to(kind) for name, tensor in network.state_dict().items()}
    rewrite(folder, tensors)
    with pytest.raises(LoadError, match=r"must hold the network of its config\.json; got features.* and 4 more"):
        read_model(*paths(folder))
    rewrite(folder, network.state_dict() | {"readout.bias": torch.zeros(2).half()})
    with pytest.raises(LoadError, match=r"must be of one floating type; got torch\.float16, torch\.float32"):
        read_model(*paths(folder))


def test_comparing_draws_no_random_numbers(network):
    before = torch.get_rng_state()
    tensors = network_tensors(NETWORK)
    assert torch.equal(torch.get_rng_state(), before)
    assert tensors == {name: (value.dtype, tuple(value.shape)) for name, value in network.state_dict().items()}

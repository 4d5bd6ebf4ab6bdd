"""A model's two files as one: every damaged bit refused, nothing allocated for what the weights do not fill."""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ttfs_triton.data.events import EventWindows
from ttfs_triton.model import BaseModel, LoadError, ModelDescription, Preprocessing, TTFSModel, files, find_model
from ttfs_triton.model.files import checksum, read_model, read_weights, weight_bytes, write_model
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork

NETWORK = NetworkConfig("2C3-P2-4", image_size=(4, 4), classes=2)
DESCRIPTION = ModelDescription.of(NETWORK, class_names=["a\x1f", "ç"], dataset="sample", base_model=BaseModel("a", "b"))


@pytest.fixture
def network():
    return TTFSNetwork(NETWORK)


@pytest.fixture
def folder(tmp_path, network):
    write_model(tmp_path, network.state_dict(), DESCRIPTION)
    return tmp_path


def read(folder):
    return read_model(find_model(folder))


def rewrite(folder, tensors, **changes):
    """Write a changed config.json, and weights that know it."""
    content = json.dumps(DESCRIPTION.to_dict() | changes).encode()
    (folder / "config.json").write_bytes(content)
    metadata = {files.CONFIG_CHECKSUM: hashlib.sha256(content).hexdigest()}
    (folder / "model.safetensors").write_bytes(weight_bytes(tensors, metadata))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_every_flipped_bit_is_refused(folder, name, monkeypatch):
    monkeypatch.setattr("ttfs_triton.model.files.TTFSNetwork", cache(TTFSNetwork))  # seconds, not minutes
    content = (folder / name).read_bytes()
    accepted = []
    with (folder / name).open("r+b", buffering=0) as file:
        for place in range(8 * len(content)):
            byte, bit = divmod(place, 8)
            file.seek(byte)
            file.write(bytes([content[byte] ^ 1 << bit]))
            with suppress(LoadError):
                read(folder)
                accepted.append(place)
            file.seek(byte)
            file.write(content[byte : byte + 1])
    assert accepted == []
    assert read(folder)[0] == DESCRIPTION


def test_files_of_two_models_are_refused(folder, network, tmp_path_factory):
    weights = folder / "model.safetensors"
    other = tmp_path_factory.mktemp("other")
    write_model(other, network.state_dict(), DESCRIPTION.replace(dataset=None))
    with pytest.raises(LoadError, match=r"its checksum differs\. Copy or download both again"):
        read_model(files.ModelFiles(weights, other / "config.json"))
    weights.write_bytes(weight_bytes(network.state_dict()))
    with pytest.raises(LoadError, match=r"must be the ones written with it; their header has format, tensors_"):
        read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json must be what training wrote; it is not JSON"),
        (b'{"a": ' * 100_000, "it is not JSON"),
        (b'{"format_version": ' + b"1" * 5000 + b"}", "it is not JSON"),
        (b"[1]", "format_version must be 3 or 4; got None"),
        (b" " * (files.MAX_CONFIG_BYTES + 1), "must be a readable file; .* at most 16777216 are allowed"),
        (None, "must describe the network of the weights; there is no such file"),
        (os.mkfifo, "must be a readable file; .*no regular file"),
    ],
)
def test_files_that_are_no_description_are_refused(folder, network, content, message):
    config = folder / "config.json"
    config.unlink()
    if callable(content):
        content(config)
    elif content is not None:
        config.write_bytes(content)
    (folder / "model.safetensors").write_bytes(weight_bytes(network.state_dict()))
    with pytest.raises(LoadError, match=message):
        read(folder)


def test_networks_are_compared_before_memory_is_taken(folder, network, monkeypatch):
    monkeypatch.setattr("ttfs_triton.model.files.read_weights", None)
    for change, message in (
        ({"specification": "3C3-P2-4"}, r"conv1\.weight torch.float32 \[2, 1, 3, 3\], not .* \[3, 1, 3, 3\]"),
        ({"specification": "4"}, r"features\.conv1\.bias unexpected; .*fc1\.weight torch\.float32"),
        ({"specification": "2C3-2C3-P2-4"}, r"features\.conv2\.bias missing"),
        ({"specification": "1048576C3-1048576C1-8"}, "weights must be at most 2147483648"),
        ({"image_size": [1, 1]}, "image_size must be large enough for every layer"),
        ({"classes": 10**12}, "network.classes: Input should be less than or equal to 1048576"),
    ):
        values = NETWORK.to_dict() | change
        names = [str(place) for place in range(min(values["classes"], 10))]
        preprocessing = {"size": values["image_size"], "mode": "L"}
        rewrite(folder, network.state_dict(), network=values, class_names=names, preprocessing=preprocessing)
        with pytest.raises(LoadError, match=message):
            TTFSModel.from_pretrained(folder)


def test_other_types_are_refused(folder, network):
    tensors, wrong = network.state_dict(), r"must hold the network of its config\.json; got features.* and 4 more"
    for changed, message in (
        *(({name: tensor.to(kind) for name, tensor in tensors.items()}, wrong) for kind in (torch.int64, torch.uint8)),
        (tensors | {"readout.bias": torch.zeros(2).half()}, "must be of one floating type; got torch.float16, torch.f"),
    ):
        rewrite(folder, changed)
        with pytest.raises(LoadError, match=message):
            read(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_loaded(folder, network, value, monkeypatch):
    before, tensors = {path: path.read_bytes() for path in folder.iterdir()}, network.state_dict()
    tensors["readout.bias"][1] = value
    message = r"must .*finite.*; got 1 of 2 values of readout\.bias that are not"
    with pytest.raises(ValueError, match=message):
        write_model(folder, tensors, DESCRIPTION)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr("ttfs_triton.model.files.not_finite", lambda tensors: "")
        write_model(folder, tensors, DESCRIPTION)
    with pytest.raises(LoadError, match=message):
        read(folder)


# ---- weights alone


PLAIN = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.tolist()) == (other[name].dtype, other[name].tolist())


def test_weights_survive_a_file_that_others_can_read_and_write(tmp_path):
    path, content = tmp_path / "weights", weight_bytes(PLAIN)
    path.write_bytes(content)
    assert_same(read_weights(path), PLAIN)
    assert_same(load_file(path), PLAIN)
    assert {weight_bytes(PLAIN) for _ in range(20)} == {content}
    assert int.from_bytes(content[:8], "little") % 8 == 0
    save_file(dict(PLAIN), path)  # without a checksum
    assert_same(read_weights(path), PLAIN)
    for damaged in (*(content[:length] for length in (0, 7, 100, -1)), b"\x80\x04K\x01.", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(LoadError, match="must be a whole safetensors file"):
            read_weights(path)


def test_checksum_knows_names_shapes_and_types():
    zeros = torch.zeros(4)
    tensors = {"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros[:2].double()}, {"a": zeros.int()}
    assert len({checksum(each) for each in tensors}) == len(tensors)


# ---- config.json alone


OBLONG = NetworkConfig("4C3-P2-8", image_size=(8, 6), classes=3, neuron=Neuron(0.5))
BASE = BaseModel("model.safetensors", "ab" * 32, "org/name", "cd" * 20)
WHOLE = ModelDescription.of(OBLONG, class_names=["a", "b", "ç"], dataset="sample", base_model=BASE)
SIZE = {"size": [8, 6], "mode": "L"}


def test_description_survives_json():
    values = WHOLE.to_dict()
    assert ModelDescription.from_dict(json.loads(json.dumps(values))) == WHOLE
    usual = {"divisor": 255.0, "resize": "bilinear", "fit": "stretch", "events": None}
    assert (values["preprocessing"], set(values["library"])) == (SIZE | usual, {"name", "version"})
    for channels, mode, fit in ((1, "L", "crop"), (3, "RGB", "stretch"), (2, None, "stretch")):
        description = ModelDescription.of(OBLONG.replace(in_channels=channels), fit=fit)
        assert ModelDescription.from_dict(description.to_dict()).preprocessing == Preprocessing((8, 6), mode, fit=fit)


def test_wrong_values_are_refused():
    for change, message in (
        ({"format_version": True}, "format_version must be 3 or 4; got True. Upgrade"),
        ({"licence": "mit"}, "licence: there is no such key; got 'mit'"),
        ({"network": 5}, "network: must be an object; got 5"),
        ({"network": {"specification": "4Q3"}}, "network: "),
        ({"network": OBLONG.to_dict() | {"specification": "\uff14C3-P2-8"}}, "specification must be "),
        ({"network": {"builder": "own.py:build"}}, "network.layers: Field required"),
        ({"class_names": ["a", "b"]}, "class_names must be 3 strings, one per class"),
        ({"class_names": ["a", "b", "a"]}, r"class_names must differ; got \('a', 'b', 'a'\)"),
        ({"class_names": [0, 1, 2]}, "class_names.0: Input should be a valid string; got 0"),
        ({"preprocessing": {"size": [9, 9], "mode": "L"}}, r"preprocessing must be the network's, .*size=\(8, 6\)"),
        ({"preprocessing": SIZE | {"mode": "HSV"}}, "mode: Input should be 'L' or 'RGB'; got 'HSV'"),
        ({"preprocessing": SIZE | {"divisor": 1.0}}, r"must be the network's, .*divisor=255\.0.*; got .*divisor=1\.0"),
        ({"base_model": {"file": "a"}}, "base_model.sha256: Field required"),
    ):
        with pytest.raises(LoadError, match=message):
            ModelDescription.from_dict(WHOLE.to_dict() | change)


def test_event_windows_survive_json_and_fit_the_channels():
    events = EventWindows(3, 105_000, 2, (34, 34))
    description = ModelDescription.of(OBLONG.replace(in_channels=6), events=events)
    values = json.loads(json.dumps(description.to_dict()))
    assert values["preprocessing"]["events"] == {"count": 3, "length_us": 105_000, "pool": 2, "sensor": [34, 34]}
    assert ModelDescription.from_dict(values) == description
    with pytest.raises(ValueError, match="half as many windows as the network has channels, 4; got 3"):
        ModelDescription.of(OBLONG.replace(in_channels=4), events=events)
    for wrong in ([], {"count": 0}, {"windows": 3}):
        with pytest.raises(LoadError, match="values must describe a network"):
            ModelDescription.from_dict(values | {"preprocessing": values["preprocessing"] | {"events": wrong}})

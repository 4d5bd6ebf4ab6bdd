"""Weights with a checksum, and strict loading."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from ttfs_triton.model import LoadError
from ttfs_triton.model.weights import checksum, read_weights, read_weights_into, weight_bytes


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def path(tmp_path, network):
    (tmp_path / "model.safetensors").write_bytes(weight_bytes(network.state_dict()))
    return tmp_path / "model.safetensors"


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name])


def test_weights_survive_a_file_that_others_can_read(path, network):
    assert_same(read_weights(path), network.state_dict())
    assert_same(load_file(path), network.state_dict())


def test_same_weights_give_the_same_aligned_bytes(network):
    contents = {weight_bytes(network.state_dict()) for _ in range(20)}
    assert len(contents) == 1
    assert int.from_bytes(contents.pop()[:8], "little") % 8 == 0


def test_prefixes_of_compiled_parts_are_taken_off(tmp_path, network):
    named = {name.replace("0.", "0._orig_mod."): tensor for name, tensor in network.state_dict().items()}
    (tmp_path / "a").write_bytes(weight_bytes(named))
    assert_same(read_weights(tmp_path / "a"), network.state_dict())


@given(st.data())
def test_any_flipped_bit_of_the_values_is_noticed(tmp_path_factory, data):
    content = bytearray(weight_bytes({"weight": torch.arange(6.0), "count": torch.tensor(3)}))
    start = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(start, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="its checksum differs"):
        read_weights(path)


def test_checksum_knows_names_shapes_and_types():
    tensors = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.zeros(4, dtype=torch.int32)},
    ]
    assert len({checksum(each) for each in tensors}) == len(tensors)


def test_weights_without_a_checksum_load(path, network):
    save_file(dict(network.state_dict()), path)
    assert_same(read_weights(path), network.state_dict())


@pytest.mark.parametrize("length", [0, 7, 100, -1, None])
def test_cut_off_missing_and_foreign_files_are_refused(path, length):
    content = path.read_bytes()[:length] if length is not None else b"\x80\x04K\x01."
    path.write_bytes(content)
    for each in (path, path.with_name("nothing")):
        with pytest.raises(LoadError, match="must be a whole safetensors file"):
            read_weights(each)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_network_takes_the_precision_of_the_file(tmp_path, network, kind):
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(kind)
    (tmp_path / "a").write_bytes(weight_bytes(other.state_dict()))
    read_weights_into(network, tmp_path / "a")
    assert_same(network.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("0.weight"), "Missing key"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "Unexpected key"),
        (lambda tensors: tensors.update({"0.weight": torch.zeros(2, 2)}), "size mismatch"),
        (lambda tensors: tensors.update({"0.weight": torch.zeros(2, 3).half()}), "must be of one floating type"),
    ],
    ids=["missing", "extra", "shape", "precision"],
)
def test_loading_is_strict(tmp_path, network, change, message):
    tensors = dict(network.state_dict())
    change(tensors)
    (tmp_path / "a").write_bytes(weight_bytes(tensors))
    with pytest.raises(LoadError, match=f"(?s){message}"):
        read_weights_into(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "a")

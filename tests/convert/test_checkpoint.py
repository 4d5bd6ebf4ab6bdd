"""Containers and prefixes of training scripts, and tensors that are no weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.convert import WeightsError
from ttfs_triton.convert.checkpoint import CONTAINERS, PREFIXES, plain_tensors

TENSORS = {"features.0.weight": torch.ones(2, 3), "features.1.num_batches_tracked": torch.tensor(7)}


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return list(tensors) == list(TENSORS) and all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)


@given(
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=3),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
)
def test_containers_and_prefixes_are_removed(containers, prefixes):
    content = {"".join(prefixes) + name: tensor for name, tensor in TENSORS.items()}
    for name in containers:
        content = {name: content, "epoch": 3}
    tensors, steps = plain_tensors(content)
    assert same(tensors)
    opened = [step for step in steps if step.startswith("opened")]
    assert opened == [f"opened {name}, left epoch" for name in reversed(containers)]
    removed = [step.removeprefix("removed the prefix ") for step in steps if step.startswith("removed")]
    assert removed == prefixes


def test_averaged_weights_come_first():
    tensors, steps = plain_tensors(
        {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}, "optimizer": {}}
    )
    assert tensors["a"].item() == 1
    assert steps == ("opened state_dict_ema, left optimizer, state_dict",)


def test_prefix_of_some_names_only_stays():
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(plain_tensors(tensors)[0]) == list(tensors)


def test_layer_that_is_called_like_a_container_stays():
    assert list(plain_tensors({"model": torch.ones(2), "other": torch.ones(2)})[0]) == ["model", "other"]


def test_parameters_lose_their_gradient():
    tensors, _ = plain_tensors({"a": torch.nn.Parameter(torch.ones(2))})
    assert not tensors["a"].requires_grad


@pytest.mark.parametrize("content", [None, 3, [torch.ones(1)], torch.ones(1), "text"])
def test_something_else_than_a_mapping_is_refused(content):
    with pytest.raises(WeightsError, match="must be a mapping of names to tensors; got"):
        plain_tensors(content)


@pytest.mark.parametrize("content", [{"a": 1.0}, {"a": [torch.ones(1)]}, {3: torch.ones(1)}, {"a": {"b": 1}}])
def test_something_else_than_named_tensors_is_refused(content):
    with pytest.raises(WeightsError, match="must be named tensors only; got"):
        plain_tensors(content)


def test_nothing_is_refused():
    with pytest.raises(WeightsError, match="must hold tensors; got none"):
        plain_tensors({"state_dict": {}})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.ones(2, 0),
    ],
    ids=["sparse", "complex", "meta", "empty"],
)
def test_other_tensors_are_refused(tensor):
    with pytest.raises(WeightsError, match="a must be a dense tensor of real numbers; got"):
        plain_tensors({"a": tensor})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(WeightsError, match="a must be finite; got 1 of 3 values"):
        plain_tensors({"a": torch.tensor([0.0, value, 1.0])})

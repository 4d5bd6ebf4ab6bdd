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


def test_what_is_only_called_like_a_container_or_prefix_stays():
    for names in (("module.a", "b"), ("model", "other")):
        tensors, _ = plain_tensors({name: torch.nn.Parameter(torch.ones(2)) for name in names})
        assert list(tensors) == list(names)
        assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((content, "must be a mapping of names to tensors; got") for content in (None, 3, [torch.ones(1)], "text")),
        *(({"a": value}, "must be named tensors only; got") for value in (1.0, [torch.ones(1)], {"b": 1})),
        ({3: torch.ones(1)}, "must be named tensors only; got"),
        ({"state_dict": {}}, "must hold tensors; got none"),
    ],
)
def test_something_else_than_named_tensors_is_refused(content, message):
    with pytest.raises(WeightsError, match=message):
        plain_tensors(content)


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

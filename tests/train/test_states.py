import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ttfs_triton.atomic import tensor_bytes
from ttfs_triton.train.states import Position, from_json, pack_optimizer, to_json, unpack_optimizer

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda p: Adam(p, lr=1 / 3, betas=(0.8, 1 / 3)),
    "adam-amsgrad": lambda p: Adam(p, lr=1e-2, amsgrad=True),
    "adam-tensor-rate": lambda p: Adam(p, lr=torch.tensor(0.0123, dtype=torch.float64), foreach=False),
    "adamw": lambda p: AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-foreach": lambda p: AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: AdamW(p, lr=1e-2, fused=True),
    "sgd": lambda p: SGD(p, lr=1e-2),
    "sgd-nesterov": lambda p: SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "sgd-fused": lambda p: SGD(p, lr=1e-2, momentum=0.9, fused=True),
}


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 5, bias=False))
    return network.to(memory_format=torch.channels_last)


def groups_of(network: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": network[0].parameters()}, {"params": network[3].parameters(), "lr": 1e-3}]


def train(network: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(2, 3, 6, 6, generator=generator).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()


def through_files(tensors: dict[str, Tensor], json_state: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    return load(tensor_bytes(tensors)), json.loads(json.dumps(json_state, allow_nan=False))


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_continues_bit_for_bit(make: Callable[[Any], Optimizer], steps_before: int) -> None:
    network = make_network()
    optimizer = make(groups_of(network))
    train(network, optimizer, range(steps_before))
    packed = through_files(*pack_optimizer(optimizer))

    resumed_network = make_network(seed=1)
    resumed_network.load_state_dict(network.state_dict())
    resumed = make(groups_of(resumed_network))
    unpack_optimizer(resumed, *packed)
    for own, saved in zip(resumed.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in own.items() if k != "params"} == {k: v for k, v in saved.items() if k != "params"}
    train(network, optimizer, range(3, 6))
    train(resumed_network, resumed, range(3, 6))
    for own, saved in zip(resumed_network.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, saved)


def test_optimizer_state_is_exact_in_type_and_value() -> None:
    network = make_network()
    optimizer = AdamW(network.parameters(), lr=0.1 + 0.2, betas=(0.9, 0.999))
    train(network, optimizer, range(2))
    optimizer.param_groups[0].update(initial_lr=math.inf, bound=math.nan, nothing=None, names=["a"])
    tensors, json_state = through_files(*pack_optimizer(optimizer))
    assert tensors["0.step"].shape == ()
    assert tensors["0.step"].dtype == torch.float32

    resumed = AdamW(network.parameters())
    unpack_optimizer(resumed, tensors, json_state)
    group = resumed.param_groups[0]
    assert group["lr"] == 0.1 + 0.2
    assert group["betas"] == (0.9, 0.999)
    assert isinstance(group["betas"], tuple)
    assert group["initial_lr"] == math.inf
    assert math.isnan(group["bound"])
    assert group["nothing"] is None
    assert group["names"] == ["a"]
    weight = network[0].weight
    assert isinstance(weight, Tensor)
    moment = resumed.state[weight]["exp_avg"]
    assert torch.equal(moment, optimizer.state[weight]["exp_avg"])
    assert moment.stride() == weight.stride()


def test_unpack_optimizer_copies_and_leaves_its_arguments_alone() -> None:
    network = make_network()
    optimizer = SGD(network.parameters(), lr=1e-2, momentum=0.9)
    train(network, optimizer, range(2))
    tensors, json_state = pack_optimizer(optimizer)
    before = json.dumps(json_state)
    resumed = SGD(network.parameters(), lr=1e-2, momentum=0.9)
    unpack_optimizer(resumed, tensors, json_state)
    moments = {name: tensor.clone() for name, tensor in tensors.items()}
    train(network, resumed, range(2))
    assert all(torch.equal(tensors[name], moments[name]) for name in tensors)
    assert json.dumps(json_state) == before


def test_pack_optimizer_rejects_state_outside_json() -> None:
    optimizer = SGD(make_network().parameters(), lr=1e-2)
    optimizer.param_groups[0]["hook"] = object()
    with pytest.raises(TypeError, match=r"to_json: group0\.hook must be a JSON value; got object"):
        pack_optimizer(optimizer)


def wider(_: nn.Sequential) -> Optimizer:
    return AdamW([torch.zeros(4, 3, 3, 3), torch.zeros(9), torch.zeros(5, 64)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: Adam(n.parameters()), "optimizer must be what was saved, AdamW; got Adam"),
        (lambda n: AdamW(groups_of(n)), "number of parameter groups must be what was saved, 1; got 2"),
        (lambda n: AdamW(n[0].parameters()), "number of parameters in group 0 must be .* 3; got 2"),
        (wider, r"shape of parameter 1 must be what was saved, \[4\]; got \[9\]"),
    ],
    ids=["class", "groups", "parameters", "shape"],
)
def test_unpack_optimizer_rejects_another_optimizer(make: Callable[[nn.Sequential], Optimizer], message: str) -> None:
    network = make_network()
    optimizer = AdamW(network.parameters())
    train(network, optimizer, range(1))
    other = make(network)
    with pytest.raises(ValueError, match=f"unpack_optimizer: {message}.* Build model and optimizer"):
        unpack_optimizer(other, *pack_optimizer(optimizer))
    assert not other.state


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_unpack_optimizer_rejects_tensors_of_another_state(change: str) -> None:
    network = make_network()
    optimizer = AdamW(network.parameters())
    train(network, optimizer, range(1))
    tensors, json_state = pack_optimizer(optimizer)
    if change == "missing":
        del tensors["1.exp_avg"]
        message = r"tensors must be those that json_state lists; got \['1.exp_avg'\] missing or unexpected"
    elif change == "unexpected":
        tensors["7.exp_avg"] = torch.zeros(1)
        message = r"tensors must be those that json_state lists; got \['7.exp_avg'\] missing or unexpected"
    else:
        tensors["1.exp_avg"] = torch.zeros(9)
        message = r"shape of 1.exp_avg must be what was saved, \[4\]; got \[9\]"
    with pytest.raises(ValueError, match=message):
        unpack_optimizer(AdamW(network.parameters()), tensors, json_state)


def test_json_round_trip_is_exact() -> None:
    value = {
        "floats": [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, 1e22],
        "special": (math.inf, -math.inf),
        "nested": [(), (1, (2, [3, None])), {"a": {}}, [], True, "é\n"],
        "big": 1 << 80,
    }
    once = to_json(value)
    assert to_json(once) == once
    back = from_json(json.loads(json.dumps(once, allow_nan=False)))
    assert back == value
    assert math.copysign(1, back["floats"][2]) == -1
    assert from_json(back) == value
    assert math.isnan(from_json(to_json(math.nan)))


def test_to_json_rejects_other_keys_and_values() -> None:
    with pytest.raises(TypeError, match=r"to_json: keys of state\.a must be strings; got 3"):
        to_json({"a": {3: 4}})
    with pytest.raises(TypeError, match=r"to_json: state\.a\[1\] must be a JSON value; got Tensor"):
        to_json({"a": [1, torch.zeros(1)]})


@pytest.mark.parametrize(
    ("best", "accuracy", "expected"),
    [
        (-1.0, 0.0, True),  # the first epoch, whatever it reached
        (0.99, 0.98, False),
        (0.98, 0.99, True),
        (0.99, 0.99, True),  # the later of two that are equal
    ],
)
def test_position_is_best_by_accuracy_then_epoch(best, accuracy, expected):
    assert Position(best_accuracy=best).is_best(accuracy) is expected


def test_position_of_a_checkpoint_that_has_a_loss_is_read():
    position = Position(epoch=3, best_epoch=2, best_accuracy=0.9)
    assert Position.from_dict(position.to_dict() | {"best_loss": 0.3}) == position

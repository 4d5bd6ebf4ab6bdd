"""Points, and what may be asked of a sweep."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ttfs_triton.frontier import FrontierOptions, Point
from ttfs_triton.nn import Grid
from ttfs_triton.nn.faults import Faults


def options(**changes):
    return FrontierOptions(runs=("bundled:cnn1-mnist",), output_dir=Path("out"), **changes)


def test_point_reads_its_own_name():
    point = Point.parse("weight-bits=4+time_steps=8+target_sparsity=conv1=0.3,fc1=0.1")
    assert point.keys == (("target_sparsity", "conv1=0.3,fc1=0.1"), ("time_steps", 8), ("weight_bits", 4))
    assert Point.parse(point.name) == point
    assert Point.of(target_energy="chips/my chip.toml:4").folder == "target_energy=chips_my_chip.toml_4"
    others = {"target_sparsity": None, "target_energy": None}
    assert Point.of(target_operations=0.3).values() == others | {"target_operations": 0.3}, "in place of any other"
    assert Point.of(time_steps=4).values() == {"time_steps": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.15", "must read KEY=VALUE"),
        ("width=1", "may have the keys"),
        ("lr=1", "must have a target, grid or faults"),
        ("time_steps=4+time_steps=8", "each key once"),
    ],
)
def test_point_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        Point.parse(text)


def test_axes_give_points_each_once():
    asked = options(
        target_sparsity=("0.30", "conv1=0.2"),
        time_steps=(4, 8),
        weight_bits=(2,),
        train_grids=True,
        lost_spikes=(0.1,),
        train_faults=True,
        points=("time_steps=4+weight_bits=2", "target_sparsity=0.3+time_steps=8"),
    )
    assert [point.name for point in asked.trained()] == [
        "target_sparsity=0.3",
        "target_sparsity=conv1=0.2",
        "time_steps=4+weight_bits=2",
        "time_steps=8+weight_bits=2",
        "lost_spikes=0.1",
        "target_sparsity=0.3+time_steps=8",
    ]
    assert list(asked.grids().values()) == [Grid(4, 2), Grid(8, 2)]
    assert asked.faults() == [Faults(lost_spikes=0.1)]
    assert options(time_steps=(4,), weight_bits=(2,), lost_spikes=(0.1,)).trained() == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weight_bits": (4,)}, "weight_bits needs time_steps"),
        ({"state_bits": 8}, "state_bits needs time_steps"),
        ({"train_grids": True}, "train_grids needs time_steps"),
        ({"train_faults": True}, "train_faults needs faults"),
        ({"time_steps": (0,)}, "time_steps"),
        ({"spike_jitter": (2.0,)}, "less than or equal to 1"),
        ({"points": ("a=1",)}, "may have the keys"),
    ],
)
def test_options_refuse(asked, message):
    with pytest.raises(ValidationError, match=message):
        options(**asked)

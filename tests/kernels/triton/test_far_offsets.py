"""Tensors of more than 2³¹ elements, whose last images must be found: every contraction, bit for bit.

Memory that nobody has touched costs nothing, so tensors are zeros but for their last images, and of each launch only
the programs that read or write those are interpreted. An address outside of all tensors is an error.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.triton.common import device_for, exact_layer, expected_forward, expected_grad_w, expected_grad_x
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import passes, work
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Chip, Form
from ttfs_kernels.triton_backend.launch import Launch, interpreting
from ttfs_kernels.triton_backend.problem import Problem

LINEAR = Problem(5, 1, 1, 16, 16, dtype=torch.float16)
CONV2D = Problem(3, 2, 2, 16, 16, (3, 3), padding=(1, 1), dtype=torch.float16)
CONFIG = Config(16, 16, 16, 4, 1, Form.WEIGHTS_FIRST)
CASES = pytest.mark.parametrize(
    ("last", "by_position"),
    [(LINEAR, False), (CONV2D, False), (CONV2D, True)],
    ids=["linear", "conv2d", "conv2d by position"],
)
pytestmark = pytest.mark.skipif(not interpreting(), reason="programs are picked in the interpreter")


@triton.jit
def at_row_in_32_bits(ptr, row, stride):
    return ptr + row.to(tl.int32) * stride


def far(last: Problem) -> Problem:
    """So many images before these that their elements are beyond 2³¹."""
    return dataclasses.replace(last, batch=work.WIDE // (last.height * last.width * last.in_channels) + last.batch)


def behind_zeros(tensor: Tensor, batch: int) -> Tensor:
    """A batch whose last images are these."""
    maps = torch.from_numpy(np.zeros((batch, *tensor.shape[1:]), np.float16))
    maps[-len(tensor) :] = tensor
    return maps


def run_only(launch: Launch, programs: list[tuple[int, int, int]]) -> None:
    """These programs of a launch."""
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    with pytest.MonkeyPatch.context() as patch:
        # Tensors are where the interpreter has them: copying them onto themselves would touch all their memory.
        patch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)
        patch.setattr(
            interpreter_builder, "set_grid_idx", lambda x, *_: setattr(interpreter_builder, "grid_idx", programs[x])
        )
        for name, mask_at in (("create_masked_load", 1), ("create_masked_store", 2)):
            patch.setattr(interpreter_builder, name, inside(launch, getattr(interpreter_builder, name), mask_at))
        dataclasses.replace(launch, grid=(len(programs),)).run()


def inside(launch: Launch, access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
    """A load or store that refuses addresses in none of a launch's tensors; without, the process would end there."""
    tensors = [value for value in launch.arguments.values() if isinstance(value, Tensor)]
    starts = [tensor.data_ptr() for tensor in tensors]
    ends = [start + tensor.nbytes for start, tensor in zip(starts, tensors, strict=True)]

    def checked(*arguments: Any) -> Any:
        addresses = arguments[0].data[arguments[mask_at].data.astype(bool)].astype(np.int64)
        known = [(start <= addresses) & (addresses < end) for start, end in zip(starts, ends, strict=True)]
        if not np.any(known, axis=0).all():
            raise IndexError("an address is in no tensor")
        return access(*arguments)

    return checked


def last_blocks(launch: Launch, problem: Problem, by_position: bool) -> list[tuple[int, int, int]]:
    """The programs of the last images: the last one, or the last one at each position."""
    positions = problem.height * problem.width if by_position else 1
    blocks = launch.grid[0] // positions
    return [((position + 1) * blocks - 1, 0, 0) for position in range(positions)]


@CASES
@pytest.mark.parametrize("which", ["forward", "grad_x"])
def test_the_last_images_are_found(which, last, by_position):
    layer, problem = exact_layer(last, torch.device("cpu")), far(last)
    config = dataclasses.replace(CONFIG, by_position=by_position, splits=1)
    x = behind_zeros(layer.x, problem.batch)
    if which == "forward":
        options = layer.bias, Neuron(), True, config, "ieee", Chip("cuda", 80)
        plan, expected = passes.forward(problem, x, layer.weight, *options), expected_forward(layer, 1.0, True)
    else:
        h = behind_zeros(layer.h, problem.batch)
        plan, expected = passes.grad_x(problem, h, x, layer.weight, config, "ieee"), (expected_grad_x(layer),)
    run_only(plan.launches[0], last_blocks(plan.launches[0], problem, by_position))
    for found, tensor in zip(plan.outputs, expected, strict=True):
        assert found is not None
        assert found.numel() > work.WIDE
        assert torch.equal(found[-last.batch :].view_as(tensor), tensor)


@CASES
def test_grad_w_finds_the_last_images(last, by_position):
    """Of the splits, those that hold a step of the last images; all others would add zeros."""
    layer, problem = exact_layer(last, torch.device("cpu")), far(last)
    config = dataclasses.replace(CONFIG, by_position=by_position, splits=2**19)
    x, h, slope_h = (behind_zeros(tensor, problem.batch) for tensor in (layer.x, layer.h, layer.slope_h))
    device = device_for(torch.device("cpu"), 90)
    launch = passes.grad_w(problem, h, slope_h, x, config, "ieee", device).launches[0]
    length, image_blocks = launch.arguments["steps_per_split"], -(-problem.batch // config.block_k)
    programs = set()
    for tap, steps in enumerate(work.tap_steps(problem, config)):
        positions = steps // image_blocks if by_position else 1
        for position in range(positions):
            step = (position + 1) * (steps // positions) - 1
            programs.add((tap, step // length, 0))
    run_only(launch, sorted(programs))
    parts, expected = launch.arguments["out_ptr"], expected_grad_w(layer)
    parts = parts.view(len(parts), problem.out_channels, -1, problem.group_inputs)
    found = torch.zeros_like(parts[0])
    for tap, split, _ in programs:
        found[:, tap] += parts[split, :, tap]
    assert torch.equal(found.view_as(expected).to(expected.dtype), expected)


def test_a_32_bit_offset_would_be_found(monkeypatch):
    """The check itself, where the address of a row is computed as it must not be."""
    layer, problem = exact_layer(LINEAR, torch.device("cpu")), far(LINEAR)
    x = behind_zeros(layer.x, problem.batch)
    plan = passes.forward(problem, x, layer.weight, None, Neuron(), True, CONFIG, "ieee", Chip("cuda", 80))
    launch = plan.launches[0]
    monkeypatch.setitem(launch.kernel.fn.__globals__, "at_row", at_row_in_32_bits)
    with pytest.raises(Exception, match="an address is in no tensor"):
        run_only(launch, last_blocks(launch, problem, False))

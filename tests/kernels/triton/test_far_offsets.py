"""Every contraction on tensors of more than 2³¹ elements, whose last images must be right bit for bit.

Untouched memory costs nothing, so tensors are zeros but for their last images, and only the programs of a launch that
read or write these images are interpreted. An address outside of all tensors ends the process.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.triton.common import Layer, compute, exact_layer, expected
from ttfs_kernels.triton import blocks, common
from ttfs_kernels.triton.blocks import Config
from ttfs_kernels.triton.common import INTERPRETING, Launch
from ttfs_kernels.triton.problem import PASSES, Problem

LAST = Problem(3, 2, 2, 16, 16, (3, 3), padding=(1, 1), dtype=torch.float16)
CONFIG = Config(16, 16, 16, 4, 1)
pytestmark = pytest.mark.skipif(not INTERPRETING, reason="programs are picked in the interpreter")


def far(last: Problem) -> Problem:
    """So many images before these that their elements are beyond 2³¹."""
    return dataclasses.replace(last, batch=blocks.WIDE // (last.height * last.width * last.in_channels) + last.batch)


def behind_zeros(tensor: Tensor, batch: int) -> Tensor:
    """A batch whose last images are these; of both gradients, the second dimension is the batch."""
    first = tensor.shape[: tensor.dim() - 4]
    maps = torch.from_numpy(np.zeros((*first, batch, *tensor.shape[-3:]), np.float16))
    maps[..., -tensor.shape[-4] :, :, :, :] = tensor
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
        common.launch(common.Launcher(launch.kernel, (len(programs),), launch.options), *launch.values)


def last_programs(launch: Launch, which: str, problem: Problem, config: Config) -> list[tuple[int, int, int]]:
    """The last program, or the last one at each position; of grad_w's splits, those that hold a step of these images.

    All other splits would add zeros.
    """
    positions = problem.height * problem.width if config.by_position else 1
    if which != "grad_w":
        number = launch.grid[0] // positions
        return [((position + 1) * number - 1, 0, 0) for position in range(positions)]
    length, image_blocks = launch.arguments["steps_per_split"], -(-problem.batch // config.block_k)
    programs = set()
    for tap, steps in enumerate(blocks.tap_steps(problem, config)):
        at_tap = steps // image_blocks if config.by_position else 1
        programs |= {(tap, ((position + 1) * (steps // at_tap) - 1) // length, 0) for position in range(at_tap)}
    return sorted(programs)


def planned(
    which: str, last: Problem, by_position: bool
) -> tuple[Launch, tuple[Tensor | None, ...], list[tuple[int, int, int]], Layer]:
    """A pass of the whole batch, its results, its programs of the last images, and a layer of these alone."""
    config = dataclasses.replace(CONFIG, by_position=by_position, splits=2**19 if which == "grad_w" else 1)
    layer, problem = exact_layer(last, torch.device("cpu")), far(last)
    far_away = {name: behind_zeros(getattr(layer, name), problem.batch) for name in ("x", "pair")}
    whole = layer._replace(problem=problem, **far_away)
    with common.planned() as launches:
        outputs = compute(which, whole, config, dtype=torch.float16)
    return launches[0], outputs, last_programs(launches[0], which, problem, config), layer


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("which", PASSES)
def test_the_last_images_are_right(which, by_position):
    launch, outputs, programs, layer = planned(which, LAST, by_position)
    run_only(launch, programs)
    if which == "grad_w":
        parts = launch.arguments["out_ptr"]
        parts = parts.view(len(parts), LAST.out_channels, -1, LAST.group_inputs)
        total = torch.zeros_like(parts[0])
        for tap, split, _ in programs:
            total[:, tap] += parts[split, :, tap]
        outputs = (total.to(LAST.dtype),)
    for found, wanted in zip(outputs, expected(which, layer), strict=True):
        assert found is not None
        assert which == "grad_w" or found.numel() > blocks.WIDE
        assert torch.equal(found[-len(wanted) :].view_as(wanted), wanted.half())

"""Batch norm by our kernels: against PyTorch in float64, over many programs, replayed, shared by processes.

Operands are multiples of 1/8, so that potentials are the same in every dtype, and equal ones stay equal in a pool.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kernels.test_normalised import EPSILON, NEURONS
from tests.kernels.triton.common import convolutions, exact_layer, examples, fenced_memory
from ttfs_kernels import Neuron, Normalisation, normalised_conv2d
from ttfs_kernels.triton_backend import layer, passes
from ttfs_kernels.triton_backend.choice import Choice
from ttfs_kernels.triton_backend.launch import Launch
from ttfs_kernels.triton_backend.normalised_layer import TritonNormalised
from ttfs_kernels.triton_backend.problem import Problem

OF_NEURONS = pytest.mark.parametrize("neuron", NEURONS, ids=str)
PADDED = Problem(2, 5, 7, 4, 6, (3, 3), padding=(1, 1))


def operands(problem: Problem, device: torch.device, with_skip: bool) -> list[Tensor | None]:
    """x, weight, γ, β, skip and its weight of a convolution, channels last."""
    _, x, weight, _, h, *_ = exact_layer(problem, device)
    x, weight, skip = (rows.permute(0, 3, 1, 2) for rows in (x, weight, h.clamp_min(0)))
    channels, skip = problem.out_channels, skip if with_skip else None
    given = [x, weight, 0.3 + torch.rand(channels)]
    given += [torch.randn(channels) / 3, skip, torch.randn(channels) if with_skip else None]
    return [None if tensor is None else tensor.to(device) for tensor in given]


def leaves(tensors: list[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    return [None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def layer_of(tensors: list[Tensor | None], problem: Problem, neuron: Neuron, backend: str = "triton", group=None):
    x, weight, gamma, beta, skip, skip_weight = tensors
    norm = Normalisation(gamma, beta, torch.zeros_like(gamma), EPSILON, group)
    options = problem.geometry._asdict() | {"pool": problem.pool, "neuron": neuron, "backend": backend}
    return normalised_conv2d(x, weight, norm, skip=skip, skip_weight=skip_weight, **options)


def check(given: list[Tensor | None], problem: Problem, neuron: Neuron) -> None:
    """Activations, statistics and all gradients."""
    double, single = leaves(given, torch.float64), leaves(given)
    y, mean, variance = layer_of(double, problem, neuron, "torch")
    with fenced_memory():
        found = layer_of(single, problem, neuron)
        assert found.activations.is_contiguous(memory_format=torch.channels_last)
        # Of halves, so that 16 bits hold it.
        grad = (torch.randint(-2, 3, y.shape) / 2).to(y)
        wanted = [tensor for tensor in single if tensor is not None]
        gradients = torch.autograd.grad(found.activations, wanted, grad.to(found.activations.dtype))
    expected = torch.autograd.grad(y, [tensor for tensor in double if tensor is not None], grad)
    rounded = torch.finfo(found.activations.dtype).eps
    tolerance = {"rtol": 8 * rounded, "atol": 4 * rounded} if rounded > 1e-4 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.activations.double(), y, **tolerance)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-5, atol=1e-5)
    for tensor, one, other in zip(wanted, gradients, expected, strict=True):
        assert one.dtype == tensor.dtype
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.double() / scale, other / scale, **tolerance)


@examples(45)
@given(
    problem=convolutions(),
    neuron=st.sampled_from(NEURONS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    behind=st.sampled_from(["", "pool", "skip"]),
    channels_last=st.booleans(),
)
def test_convolutions_are_the_layers_that_they_fold_into(device, problem, neuron, dtype, behind, channels_last):
    problem = dataclasses.replace(problem, dtype=dtype, pool=2 if behind == "pool" else 1)
    assume(problem.rows > 0 and min(problem.pooled_size) > 0)
    given = operands(problem, device, behind == "skip")
    if not channels_last:
        given[:2] = [tensor.contiguous() for tensor in given[:2]]
    check(given, problem, neuron)


@OF_NEURONS
@pytest.mark.parametrize("provider", ["triton", "library"])
def test_rows_that_many_programs_share(device, monkeypatch, neuron, provider):
    """Programs with several steps, of which the last is not full, and several of them to merge."""
    monkeypatch.setattr(passes, "ROW_PROGRAMS", 3)
    if provider == "library":
        monkeypatch.setattr(layer, "choose", lambda *_: Choice(None, "measured"))
    problem = Problem(5, 9, 7, 3, 20, (3, 3), padding=(1, 1), pool=2)
    check(operands(problem, device, False), problem, neuron)


@pytest.mark.parametrize("backend", ["torch", "triton", "auto"])
def test_a_gpu_gets_our_kernels(device, backend):
    served = layer_of(leaves(operands(PADDED, device, False)), PADDED, Neuron(), backend).activations.grad_fn
    ours = backend == "triton" or (backend == "auto" and device.type == "cuda")
    assert isinstance(served.passes, TritonNormalised) == ours


def test_a_step_is_launches_alone(device, monkeypatch):
    """As a captured graph has them: replayed on other activations, they give what a step on those gives."""
    problem, neuron, launches = Problem.from_dict(PADDED.to_dict() | {"pool": 2}), NEURONS[3], []
    given = operands(problem, device, False)
    grad = torch.randn_like(layer_of(given, problem, neuron).activations)

    def step(tensors: list[Tensor | None]) -> list[Tensor]:
        found = layer_of(tensors, problem, neuron)
        return [*found, *torch.autograd.grad(found.activations, [t for t in tensors if t is not None], grad)]

    own, run = leaves(given), Launch.run
    with monkeypatch.context() as patch:
        patch.setattr(Launch, "run", lambda launch: launches.append(launch) or run(launch))
        results = step(own)
    others = [None if t is None else t.flip(0) * 0.75 for t in given]
    expected = step(leaves(others))
    assert not torch.equal(results[0], expected[0])
    with torch.no_grad():
        for mine, other in zip(own, others, strict=True):
            if mine is not None and other is not None:
                mine.copy_(other)
    for launch in launches:
        launch.run()
    names = [launch.kernel.__name__ for launch in launches]
    assert names[:7] == [
        *("conv2d_forward", "moments", "merge", "fire_normalised"),
        *("reduce_gradient", "sum_splits", "spread_gradient"),
    ]
    for mine, other in zip(results, expected, strict=True):
        assert torch.equal(mine, other)


def test_a_new_persistence_is_a_number_to_kernels(device, monkeypatch):
    """Nothing else of a launch follows from σ, clip or width, and Triton compiles for no value of such a number."""
    launches: list[list[Launch]] = []
    for neuron in (Neuron(0.1, 11.0, 0.5), Neuron(1.0, 3.0, 0.25)):
        launches.append([])
        with monkeypatch.context() as patch:
            patch.setattr(Launch, "run", lambda launch: launches[-1].append(launch))
            tensors = leaves(operands(PADDED, device, True))
            layer_of(tensors, PADDED, neuron).activations.sum().backward()
    assert len(launches[0]) > 7
    for one, other in zip(*launches, strict=True):
        assert constants(one) == constants(other)
        assert all(isinstance(number, float) for number in one.arguments.get("properties", ()))


def constants(launch: Launch) -> tuple:
    numbers = {name: value for name, value in launch.arguments.items() if isinstance(value, int | str)}
    return launch.kernel, launch.grid, launch.options, numbers


def train(rank: int, folder: str) -> None:
    """One of two processes, with a share of the batch; all that it finds into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/rendezvous", 2), rank=rank, world_size=2)
    given = operands(PADDED, torch.device("cpu"), True)
    share = slice(0, 1) if rank == 0 else slice(1, 2)
    tensors = leaves([t[share] if t is not None and t.shape[0] == PADDED.batch else t for t in given])
    results = values(tensors, dist.group.WORLD)
    save_file({name: value.contiguous() for name, value in results.items()}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def values(tensors: list[Tensor], group=None) -> dict[str, Tensor]:
    found = layer_of(tensors, PADDED, NEURONS[3], group=group)
    gradients = torch.autograd.grad(found.activations.square().sum(), tensors)
    names = ("y", "mean", "variance", "x", "weight", "gamma", "beta", "skip", "skip_weight")
    return dict(zip(names, (*found, *gradients), strict=True))


@pytest.mark.slow
def test_two_processes_share_their_statistics(tmp_path: Path) -> None:
    mp.spawn(train, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    alone = values(leaves(operands(PADDED, torch.device("cpu"), True)))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, value in alone.items():
        if name in ("y", "x", "skip"):
            both = torch.cat([first[name], second[name]])
        elif name in ("mean", "variance"):
            assert torch.equal(first[name], second[name])
            both = first[name]
        else:
            both = first[name] + second[name]
        torch.testing.assert_close(both, value, rtol=1e-4, atol=1e-5)

"""Delayed spikes in the epilogues of our kernels, exact in every dtype; and their gradients beside the local ones."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.kernels.test_operators import KINDS, PERSISTENCES
from tests.kernels.test_skip import NAMES, apply, operands
from tests.kernels.triton.common import (
    CONV2D,
    LINEAR,
    Layer,
    _convolve,
    _maps,
    chip_for,
    each,
    exact_layer,
    fenced,
    run,
    serve_by,
)
from ttfs_kernels import Neuron
from ttfs_kernels.rule import fire, vanishing
from ttfs_kernels.triton_backend import choice, library, passes
from ttfs_kernels.triton_backend.formulation import Form
from ttfs_kernels.triton_backend.problem import Problem

SOME = ("few_channels", "groups", "empty")
PROBLEMS = {name: CONV2D[name] for name in SOME} | {name: LINEAR[name] for name in ("short", "even")}
PROBLEMS["small_map"] = Problem(17, 2, 2, 16, 20, (2, 2), padding=(1, 1))


def delayed(problem: Problem, device: torch.device) -> tuple[Tensor, Tensor]:
    """Spikes in the shape of the output, of which about 40 % are silent, and weights; multiples of 1/8."""
    shape = (problem.batch, *problem.out_size, problem.out_channels)
    spikes = (torch.randint(-6, 9, shape) / 8).clamp_min(0).to(device, problem.dtype)
    return fenced(spikes), fenced((torch.randint(-8, 9, (problem.out_channels,)) / 8).to(device))


@each(PROBLEMS)
@pytest.mark.parametrize(
    ("persistence", "form"), [(1.0, Form.WEIGHTS_FIRST), (0.3, Form.ACTIVATIONS_FIRST), (0.0, Form.WEIGHTS_FIRST)]
)
def test_forward_is_exact(device, problem, dtype, blocks, persistence, form):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=persistence > 0, skip=True)
    layer, (skip, weight) = exact_layer(problem, device), delayed(problem, device)
    config = dataclasses.replace(blocks, form=form, by_position=problem.height == 2)
    options = Neuron(persistence), True, config, "ieee", chip_for(device, form)
    found = run(lambda: passes.forward(problem, layer.x, layer.weight, layer.bias, *options, skip, weight), layer)
    theirs = library.forward(problem, layer.x, layer.weight, layer.bias, Neuron(persistence), True, skip, weight)
    y, gain = expected_with_skip(layer, persistence, skip.cpu(), weight.cpu())
    for results in (found, [None if result is None else result.cpu() for result in theirs]):
        # One more product than without a skip: of a third, both backends round it as they please.
        near = {"rtol": 0, "atol": 0} if persistence != 0.3 else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(results[0], y, **near)
        assert (results[1] is None) == (persistence == 0)
        if persistence == 1.0:
            assert torch.equal(results[1], gain)


def expected_with_skip(layer: Layer, persistence: float, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """From exact potentials; rounded once."""
    dtype = layer.problem.dtype
    x = _maps(layer.x)
    potential = _convolve(layer.problem, x, layer).float() + layer.bias.cpu() + weight * skip.float()
    slope = _convolve(layer.problem, (x > 0).double(), layer).float() + weight * (skip > 0)
    y, gain = fire(potential, persistence * slope)
    y = potential.clamp(0, 1) if persistence == 0 else y
    gain = gain.clamp_max(torch.finfo(dtype).max) if dtype == torch.float16 else gain
    return y.to(dtype), gain.to(dtype)


@each({name: PROBLEMS[name] for name in ("short", "few_channels", "empty")})
@pytest.mark.parametrize(
    "neuron", [Neuron(0.0), Neuron(0.5), Neuron(1.0, 1.5, 0.5)], ids=["two-phase", "half", "surrogate"]
)
@pytest.mark.parametrize("needs", [(True, True), (False, True)])
def test_local_gradient_has_those_of_the_skip(device, problem, dtype, blocks, neuron, needs):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=neuron.has_slope, surrogate=neuron.has_surrogate)
    layer, (skip, weight) = exact_layer(problem, device), delayed(problem, device)
    grad, y = layer.h, skip.flip(0).contiguous()
    gain = layer.slope_h.abs() if neuron.has_slope else None
    given = passes.Delayed(skip, weight, *needs)
    # A slope_h that nobody else wants is there for the weights all the same.
    plan = lambda: passes.local_gradient(problem, grad, y, gain, neuron, neuron.has_surrogate, True, None, given)  # noqa: E731
    pair, grad_bias, grad_skip, grad_weight = run(plan, layer)
    h, slope_h = _local(grad, y, gain, neuron)
    v, spikes = weight.cpu().float(), skip.cpu().float()
    torch.testing.assert_close(pair[0].float(), h.to(dtype).float())
    torch.testing.assert_close(grad_bias, h.flatten(0, -2).sum(0), rtol=1e-3, atol=1e-3)
    assert (grad_skip is not None, grad_weight is not None) == needs
    if grad_skip is not None:
        expected = h * v if not neuron.has_slope else torch.where(spikes > 0, h * v, 0.0)
        if neuron.has_surrogate:
            expected = expected + slope_h * v * vanishing(spikes, neuron)
        torch.testing.assert_close(grad_skip.float(), expected, rtol=2e-3, atol=2e-3)
    if grad_weight is not None:
        expected = (h * spikes + slope_h * (spikes > 0)).flatten(0, -2).sum(0)
        torch.testing.assert_close(grad_weight, expected, rtol=2e-3, atol=1e-2)


def _local(grad: Tensor, y: Tensor, gain: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    grad, y = grad.cpu().float(), y.cpu().float()
    if gain is None:
        return torch.where((y <= 0) | (y >= 1), 0.0, grad), torch.zeros_like(grad)
    gain, clip = gain.cpu().float(), neuron.derivative_clip
    return grad * gain.clamp_max(clip), neuron.psp_persistence * grad * ((1 - y) * gain).clamp_max(clip)


@KINDS
@PERSISTENCES
@pytest.mark.parametrize("provider", ["triton", "library"])
def test_providers_equal_the_torch_backend(device, monkeypatch, kind, psp_persistence, provider):
    tensors = {name: t.detach().to(device).requires_grad_() for name, t in operands(kind).items()}
    neuron = Neuron(psp_persistence, surrogate_width=0.5)

    def results() -> list[Tensor]:
        y = apply(kind, tensors, neuron=neuron)
        return [y, *torch.autograd.grad(y.sum(), list(tensors.values()))]

    theirs = results()
    serve_by(monkeypatch, provider)
    for name, ours, expected in zip(("y", *NAMES), results(), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4, msg=name)


def test_a_layer_with_a_skip_has_measurements_of_its_own():
    plain = Problem(2, 4, 4, 16, 16, (3, 3), padding=(1, 1), dtype=torch.float16)
    skip = dataclasses.replace(plain, skip=True)
    assert choice.distance(plain, skip) == float("inf")
    assert skip.of_pass("grad_x") == plain.of_pass("grad_x")
    assert Problem.from_dict(skip.to_dict()) == skip

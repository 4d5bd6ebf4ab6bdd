"""`torch.compile` in one graph, forward and backward, equal to eager."""

import pytest
import torch

from tests.kernels.test_operators import KINDS, apply, arguments
from ttfs_kernels import Neuron


@KINDS
@pytest.mark.parametrize("psp_persistence", [0.0, 1.0])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_in_one_graph(kind, psp_persistence, autocast):
    x, weight, bias = arguments(kind)

    def layer(x, weight, bias):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return apply(kind, x, weight, bias, neuron=Neuron(psp_persistence)).float()

    def results(function):
        y = function(x, weight, bias)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(compiled), results(layer), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    with torch.no_grad():
        assert torch.equal(compiled(x, weight, bias), layer(x, weight, bias))

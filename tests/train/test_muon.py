"""Muon against PyTorch's own, and against the singular value decomposition."""

import pytest
import torch
from torch import nn

from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.build import build_optimizer
from ttfs_triton.train.optimisation import Muon, orthogonal

SHAPES = [(6, 20), (20, 6), (4, 3, 2, 2), (5, 5)]
RATE, MOMENTUM = 0.2, 0.6


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (7, 7)])
def test_orthogonal_matrix_has_the_singular_vectors_and_values_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonal(matrix) @ right.T
    off_diagonal = values - values.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-9
    assert 0.6 < values.diagonal().min() <= values.diagonal().max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def make(rotated, others):
    groups = [{"params": rotated, "rotated": True}, {"params": others, "rotated": False}]
    optimizer = Muon(groups, lr=RATE, momentum=MOMENTUM, dtype=torch.float32)
    for parameter in (*rotated, *others):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def test_steps_are_those_of_pytorchs_muon_on_a_sphere_and_of_sgd():
    """PyTorch's takes matrices alone and keeps no norm: its step is scaled, and the weight put back to its norm."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    bias, other_bias = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    ours, sgd = make(weights, [bias]), torch.optim.SGD([other_bias], lr=RATE, momentum=MOMENTUM, nesterov=True)
    matrices = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
    theirs = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.0, momentum=MOMENTUM)
    for _ in range(4):
        gradients = [torch.randn_like(parameter) for parameter in (*weights, bias)]
        for parameter, gradient in zip((*weights, bias), gradients, strict=True):
            parameter.grad = gradient.clone()
        other_bias.grad = gradients[-1].clone()
        starts = [matrix.detach().clone() for matrix in matrices]
        for matrix, gradient in zip(matrices, gradients[:-1], strict=True):
            matrix.grad = gradient.flatten(1)
        for optimizer in (ours, sgd, theirs):
            optimizer.step()
        torch.testing.assert_close(bias, other_bias)
        for weight, matrix, start in zip(weights, matrices, starts, strict=True):
            rows, columns = start.shape
            update = (matrix.detach() - start) / max(1.0, rows / columns) ** 0.5  # PyTorch's rate for tall matrices
            moved = start + RATE * start.norm() / min(rows, columns) ** 0.5 * update
            expected = moved * start.norm() / moved.norm()
            error = (weight.detach().flatten(1) - expected).norm() / (expected - start).norm()
            assert error < 0.05  # theirs computes in bfloat16
            assert weight.norm().item() == pytest.approx(start.norm().item(), rel=1e-5)
            with torch.no_grad():  # both go on from one place
                matrix.copy_(weight.flatten(1))


def test_cancelled_step_changes_nothing_and_scaled_gradients_are_unscaled():
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 6), torch.randn(3, 4, 6)
    plain, scaled = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours, other = make([plain], []), make([scaled], [])
    for step, gradient in enumerate(gradients):
        if step == 1:  # cancelled for one, skipped for the other
            scaled.grad, other.found_inf = gradient * float("nan"), torch.ones(())
            before, momentum = scaled.detach().clone(), other.state[scaled]["momentum_buffer"].clone()
            other.step()
            assert torch.equal(scaled, before)
            assert torch.equal(other.state[scaled]["momentum_buffer"], momentum)
            continue
        plain.grad, scaled.grad = gradient.clone(), gradient * 1024
        other.found_inf, other.grad_scale = torch.zeros(()), torch.tensor(1024.0)
        ours.step()
        other.step()
    assert torch.equal(plain, scaled)
    assert not torch.equal(plain, start)


def test_hidden_weights_are_rotated_and_the_rest_is_not():
    network = TTFSNetwork(NetworkConfig("6C3-P2-12", image_size=(8, 8), classes=4, batch_norm=True))
    optimizer = build_optimizer(TrainConfig(optimizer="muon", lr=0.1, momentum=0.6, weight_decay=1e-3), network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rotated = [names[id(p)] for group in optimizer.param_groups if group["rotated"] for p in group["params"]]
    assert rotated == ["features.conv1.weight", "features.fc1.weight"]
    with pytest.raises(ValueError, match="muon needs momentum above 0"):
        TrainConfig(optimizer="muon", momentum=0.0)

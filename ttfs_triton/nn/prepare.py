"""Changes of whole networks in place (folding, a chip's grid, its faults), and the plain weights of layers."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.nn.coding import LatencyEncoder
from ttfs_triton.nn.faults import Faults
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import largest_integer, quantise_weight
from ttfs_triton.nn.on_chip import RoundedLayer
from ttfs_triton.nn.trace import evaluating
from ttfs_triton.nn.weighted import WeightedLayer

STATISTICS_BATCH = 500  # images of a batch in which `unfold_batch_norm` collects the statistics of potentials


@torch.no_grad()
def plain_synapses(layer: WeightedLayer) -> tuple[Tensor, Tensor | None]:
    """A layer's weights [C_out, ...] and initial potentials [C_out] or None in evaluation, float64.

    Standardisation and batch norm are folded in; on a grid they are rounded. Exports, counts and simulations use these.
    """
    weight = layer.effective_weight().detach()
    if layer.grid is not None:
        return RoundedLayer(layer, weight, noisy=False).numbers()
    weight, bias = layer.with_batch_norm(weight.double())
    return weight, None if bias is None else bias.detach().double()


@torch.no_grad()
def plain_skip_weights(layer: WeightedLayer) -> Tensor | None:
    """Weights [C_out] of delayed spikes, rounded if the layer is on a grid; None for a layer without a skip."""
    if layer.grid is not None and layer.skip:
        return RoundedLayer(layer, layer.effective_weight(), noisy=False).skip_weight
    return layer.skip_weights()


def _call(method: str, model: nn.Module, *arguments: Any) -> None:
    """Call a method of a module; if the module lacks the method, of the modules inside."""
    if (call := getattr(model, method, None)) is not None:
        call(*arguments)
        return
    for module in model.children():
        _call(method, module, *arguments)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Replace batch norm by weights and initial potentials in a layer, or in all layers inside a module, in place.

    In evaluation, outputs stay the same. Returns `model`.
    """
    _call("fold_batch_norm", model)
    return model


def put_on_grid(model: nn.Module, grid: Grid | None) -> None:
    """Make a layer, or all layers inside a module, the encoder included, compute on a chip's grid; None: no grid.

    Batch norm is folded first, in place. Weight units are those that fit the weights best.
    """
    _call("put_on_grid", model, grid)


def train_for(model: nn.Module, faults: Faults | None) -> None:
    """Simulate chip faults in every layer of a network, the encoder included, in training mode; None: no faults."""
    for module in model.modules():
        if isinstance(module, WeightedLayer | LatencyEncoder):
            module.faults = faults


def check_registers(model: nn.Module) -> None:
    """Raise ValueError if the registers of a layer on a grid are too small for its threshold, T / unit integers high.

    More time steps and finer weight units need more bits. Training keeps units coarse enough.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, WeightedLayer) or layer.kind == "analog":
            continue
        if (grid := layer.grid) is None or grid.state_bits is None:
            continue
        unit = quantise_weight(layer.effective_weight(), grid.weight_bits, per_channel=grid.per_channel).unit
        if layer.log2_unit is not None:
            unit = layer.log2_unit.detach().double().exp2()
        check_register(layer, unit, grid.time_steps, grid.state_bits, "Grid", f"{name} at {grid.text()}")


def check_register(layer: WeightedLayer, unit: Tensor, steps: int, bits: int, caller: str, where: str) -> None:
    """Raise ValueError, naming `caller` and `where`, if registers of `bits` bits are too small for a threshold."""
    # Training clamps a unit where the threshold just fits; the division here may round it up.
    height = math.ceil(steps * layer.threshold_height / float(unit.min()) * (1 - 1e-9))
    register = largest_integer(bits)
    if height > register:
        raise ValueError(
            f"{caller}: state_bits must hold every layer's threshold, which is {height:,} integers high in {where}; "
            f"got {bits}, which hold {register:,}. Use at least {height.bit_length() + 1} state_bits, or fewer "
            "time_steps or weight_bits."
        )


@torch.no_grad()
def unfold_batch_norm(network: nn.Module, plain: nn.Module, images: Tensor) -> None:
    """Give a network with batch norm the weights of a plain network, so that training can continue from them.

    `plain` has the same layers, with neither batch norm nor weight standardisation. In evaluation, both then give equal
    outputs. Potentials of `plain` on training `images`, [N, ...], give the running statistics.
    """
    layers = ([layer for layer in model.modules() if isinstance(layer, WeightedLayer)] for model in (network, plain))
    changed = []

    def run_beside(layer: WeightedLayer, _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        layer(*arguments, **options)

    with evaluating(network), evaluating(plain):
        for layer, plain_layer in zip(*layers, strict=True):
            layer.load_state_dict(plain_layer.state_dict(), strict=layer.batch_norm is None)
            norm: Any = layer.batch_norm
            if norm is not None:
                hook = plain_layer.register_forward_pre_hook(partial(run_beside, layer), with_kwargs=True)
                changed.append((norm, norm.momentum, plain_layer.bias, hook))
                norm.reset_running_stats()
                norm.momentum = 0.0
                norm.train()
        for part in images.split(STATISTICS_BATCH):
            plain(part)
    for norm, momentum, bias, hook in changed:
        hook.remove()
        norm.momentum = momentum
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean if bias is None else norm.running_mean + bias)

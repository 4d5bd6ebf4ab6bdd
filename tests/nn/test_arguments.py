"""Layers, grids and networks refuse wrong arguments when they are built; the message names the argument."""

import math

import pytest
import torch

from ttfs_triton.nn import Faults, Grid, NetworkConfig, Readout, TTFSNetwork
from ttfs_triton.nn.coding import AnalogEncoder, SignedEncoder, activation_to_spike_time
from ttfs_triton.nn.grid import Clock
from ttfs_triton.nn.integers import quantise_potential, quantise_weight
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d, SpikeUpsample2d
from ttfs_triton.nn.networks import cifarnet_specification, cnn1
from ttfs_triton.nn.on_chip import ClockedLayer


def network(specification: str, size=(8, 12), **options) -> TTFSNetwork:
    return TTFSNetwork(NetworkConfig(specification, image_size=size, **options))


def tiny(unit: float) -> ClockedLayer:
    """Neurons that start a hundred thresholds high, with weights of one unit, at many steps."""
    layer = DFTLinear(4, 2, weight_standardisation=False)
    torch.nn.init.constant_(layer.bias, 100.0)
    return ClockedLayer(layer, quantise_weight(torch.full((2, 4), unit), None), Clock(4096))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        # sizes; tests/kernels/test_checks.py has more of what is no size
        (lambda: DFTConv2d(3, 4, 3.5), r"kernel_size must be an integer or two integers ≥ 1.*got 3\.5"),
        (lambda: SpikeUpsample2d((2, 2, 2)), "SpikeUpsample2d: scale_factor must be an integer or two"),
        (lambda: EarliestSpikePool2d(3, 0), r"EarliestSpikePool2d: stride must be an integer or two"),
        (lambda: DFTLinear(0, 3), r"DFTLinear: sizes must be positive; got weights of shape \(3, 0\)"),
        (lambda: DFTLinear(2**20, 2**20), r"DFTLinear: weights must be at most 2147483648; got shape"),
        (lambda: DFTConv2d(2, 3, 3).output_shape((4, 8, 8)), r"inputs must be 2 maps; got \(4, 8, 8\)"),
        (lambda: DFTConv2d(3, 4, 3, groups=2), r"groups must divide in_channels \(=3\) and out_channels \(=4\); got 2"),
        (lambda: DFTLinear(3, 3, spike_dropout=1.0), r"spike_dropout must be in \[0, 1\); got 1.0"),
        (lambda: DFTLinear(1, 3), "weight_standardisation must have a fan-in of at least 2; got 1"),
        # backends and neurons
        (lambda: DFTConv2d(3, 4, 3, backend="cuda"), "DFTConv2d: backend must be one of auto, triton, torch"),
        (lambda: DFTLinear(3, 4, neuron=0.4), r"DFTLinear: neuron must be a Neuron; got 0\.4\. Give Neuron\(psp_pers"),
        # skips
        (lambda: DFTConv2d(2, 3, 3, skip=4), "DFTConv2d: skip must be 0 or at most the layer's 3 channels; got 4"),
        (lambda: DFTLinear(4, 3, skip=3)(torch.rand(2, 4)), "got none and skip=3. Call layer"),
        (lambda: network("4C3-(6C3-3C3)")(torch.rand(1, 1, 8, 12)), r"skip must have 3 channels, .*got \[4, 8, 12\]"),
        (lambda: network("(4C3-4C3)", encoder="analog"), "start with a convolution, not in a block"),
        # averages
        (lambda: DFTConv2d(2, 3, 3, dilation=2, average=2), "dilation must be 1 with average=2; got .2, 2."),
        (lambda: DFTLinear(10, 3, average=4), r"DFTLinear: average must divide in_features \(10\); got 4"),
        (lambda: DFTConv2d(2, 3, 3, average=2)(torch.rand(1, 2, 9, 8)), "must divide into windows of average=2"),
        (lambda: network("4C3-A3-4C3"), r"maps must divide into windows of average=3; got \(4, 8, 12\)"),
        # readouts
        (lambda: Readout(4, 2, at="middle"), "at must be one of potential_start, potential_end, first_spike; got 'mid"),
        (lambda: Readout(4, 2, threshold=0.0), "Readout: threshold must be positive; got 0.0"),
        # encoders and spike times
        (lambda: AnalogEncoder(3, 4, 3, mean=[0.5]), r"mean must have one entry per input channel \(3\); got \[0.5\]"),
        (lambda: SignedEncoder(1, 4, 3, std=[0.0]), r"std must .* \(1\), all positive; got \[0.0\]"),
        (lambda: AnalogEncoder(1, 4, 3)(torch.ones(1, 1, 4, 4).byte()), "AnalogEncoder: images .*got torch.uint8. Div"),
        (lambda: AnalogEncoder(1, 4, 3, mean=[0.5])(-torch.ones(1, 1, 4, 4)), "got -1 to -1. Scale them, without Norm"),
        (lambda: activation_to_spike_time(torch.tensor([0.5, 1.25]), 1), r"in \[0, 1\]; got values from 0.5 to 1.25"),
        # grids, faults, and numbers that integers cannot hold
        (lambda: Grid.from_dict({"time_steps": 0}), "time_steps\n.*input_value=0"),
        (lambda: Grid.from_dict({"time_steps": True}), "time_steps\n.*input_value=True"),
        (lambda: Grid(4, weight_bits=1), "weight_bits\n.*input_value=1"),
        (lambda: Grid(4, state_bits=63), "state_bits\n.*input_value=63"),
        (lambda: Grid.from_dict(4), "values must be a mapping, with time_steps; got 4"),
        (lambda: Faults(lost_spikes=-0.1), "lost_spikes\n.*input_value=-0.1"),
        (lambda: Faults(lost_spikes=math.nan), "lost_spikes\n.*input_value=nan"),
        (lambda: Faults(dead_neurons=0.7, stuck_neurons=0.6), r"must be at most 1 together; got 1\.3"),
        (lambda: quantise_weight(torch.tensor([[1.0, math.nan]]), 8), "quantise_weight: weight must be finite; got n"),
        (lambda: quantise_potential(math.inf, torch.ones(1), 4), "quantise_potential: potential must be finite; got"),
        (lambda: tiny(1e-9), r"simulate: steps must keep potentials below 2\^62; got 4096 steps"),
        # networks
        (lambda: network("4C3-P2-4C3-P8"), r"got \(8, 12\), where .* cannot read .4, 4, 6.: .*is too small"),
        (lambda: cnn1(width=0.25)(torch.rand(2, 3, 28, 28)), r"images must have shape \[N, 1, 28, 28\]; got \(2, 3"),
        (lambda: cifarnet_specification(1.0, 4), "convolutions must be 2 or 3"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()

"""Layers refuse wrong arguments when they are built; the message names the argument."""

import math

import pytest
import torch

from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    NetworkConfig,
    Readout,
    SignedEncoder,
    SpikeUpsample2d,
    TTFSNetwork,
    activation_to_spike_time,
    cnn1,
)
from ttfs_triton.nn.networks import cifarnet_specification


def network(specification: str, size=(8, 12), **options) -> TTFSNetwork:
    return TTFSNetwork(NetworkConfig(specification, image_size=size, **options))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        # sizes; tests/kernels/test_checks.py has more of what is no size
        (lambda: DFTConv2d(3, 4, 3, dilation=0), "DFTConv2d: dilation must be an integer or two integers ≥ 1"),
        (lambda: SignedEncoder(3, 4, 3, padding=-1), "SignedEncoder: padding must be .* two integers ≥ 0.*got -1"),
        (lambda: DFTConv2d(3, 4, 3.5), r"kernel_size must be an integer or two integers ≥ 1.*got 3\.5"),
        (lambda: EarliestSpikePool2d(0), "EarliestSpikePool2d: kernel_size must be an integer or two"),
        (lambda: SpikeUpsample2d((2, 2, 2)), "SpikeUpsample2d: scale_factor must be an integer or two"),
        (lambda: EarliestSpikePool2d(3, 2, 2), r"padding must be at most half of kernel_size, \(3, 3\); got 2"),
        (lambda: DFTLinear(0, 3), r"DFTLinear: sizes must be positive; got weights of shape \(3, 0\)"),
        (lambda: DFTLinear(2**20, 2**20), r"DFTLinear: weights must be at most 2147483648; got shape"),
        (lambda: DFTConv2d(2, 3, 3).output_shape((4, 8, 8)), r"inputs must be 2 maps; got \(4, 8, 8\)"),
        (lambda: DFTConv2d(3, 4, 3, groups=2), r"groups must divide in_channels \(=3\) and out_channels \(=4\); got 2"),
        (lambda: DFTLinear(3, 3, initial_gain=0.0), "initial_gain must be positive and finite; got 0.0"),
        (lambda: DFTLinear(3, 3, spike_dropout=1.0), r"spike_dropout must be in \[0, 1\); got 1.0"),
        (lambda: DFTLinear(1, 3), "weight_standardisation must have a fan-in of at least 2; got 1"),
        # backends and neurons
        (lambda: DFTConv2d(3, 4, 3, backend="cuda"), "DFTConv2d: backend must be one of auto, triton, torch"),
        (lambda: DFTLinear(3, 4, neuron=0.4), r"DFTLinear: neuron must be a Neuron; got 0\.4\. Give Neuron\(psp_pers"),
        # skips
        (lambda: DFTConv2d(2, 3, 3, skip=4), "DFTConv2d: skip must be 0 or at most the layer's 3 channels; got 4"),
        (lambda: DFTLinear(4, 3, skip=3)(torch.rand(2, 4)), "got none and skip=3. Call layer"),
        (lambda: network("4C3-(6C3-3C3)"), "a block must end with as many channels as enter it"),
        (lambda: network("4C3-(4C3s2-4C3p2)-8"), r"got \(4, 8, 12\) before Convolution\(size=4"),
        (lambda: network("(4C3-4C3)", encoder="analog"), "start with a convolution, not in a block"),
        # averages
        (lambda: DFTConv2d(2, 3, 3, average=0), "DFTConv2d: average must be at least 1; got 0"),
        (lambda: DFTConv2d(2, 3, 3, dilation=2, average=2), "dilation must be 1 with average=2; got .2, 2."),
        (lambda: DFTLinear(10, 3, average=4), r"DFTLinear: average must divide in_features \(10\); got 4"),
        (lambda: DFTConv2d(2, 3, 3, average=2)(torch.rand(1, 2, 9, 8)), "must divide into windows of average=2"),
        (lambda: network("4C3-A3-4C3"), r"maps must divide into windows of average=3; got \(4, 8, 12\)"),
        # readouts
        (lambda: Readout(4, 2, at="middle"), "at must be one of potential_start, potential_end, first_spike; got 'mid"),
        (lambda: Readout(4, 2, threshold=0.0), "Readout: threshold must be positive; got 0.0"),
        (lambda: Readout(4, 2, initial_potential=20.0), r"must be below threshold \(20.0\); got 20.0"),
        # encoders and spike times
        (lambda: AnalogEncoder(3, 4, 3, mean=[0.5]), r"mean must have one entry per input channel \(3\); got \[0.5\]"),
        (lambda: SignedEncoder(1, 4, 3, std=[0.0]), r"std must .* \(1\), all positive; got \[0.0\]"),
        (lambda: activation_to_spike_time(torch.tensor([0.5, 1.25]), 1), r"in \[0, 1\]; got values from 0.5 to 1.25"),
        (lambda: activation_to_spike_time(torch.tensor([math.nan]), 1), "activation must be in"),
        # networks
        (lambda: network("4C3-P2-4C3-P8"), r"got \(8, 12\), where .* as the patches, .8, 8.; got .4, 4, 6."),
        (lambda: cnn1(width=0.25)(torch.rand(2, 3, 28, 28)), r"images must have shape \[N, 1, 28, 28\]; got \(2, 3"),
        (lambda: cifarnet_specification(1.0, 4), "convolutions must be 2 or 3"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()

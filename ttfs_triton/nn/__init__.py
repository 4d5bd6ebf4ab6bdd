"""Layers, readouts and networks with time-to-first-spike coding and a dynamic firing threshold (DFT)."""

from ttfs_kernels import Neuron, standardise_weight
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder, activation_to_spike_time, whiten
from ttfs_triton.nn.config import NetworkConfig, parse_specification
from ttfs_triton.nn.faults import Faults
from ttfs_triton.nn.graph import NetworkError, NetworkGraph, Stage, Wire, network_graph
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d, SpikeUpsample2d, start_as_identity
from ttfs_triton.nn.models import TTFSNetwork, decide
from ttfs_triton.nn.networks import cifarnet, cnn1, resnet18, resnet20, vgg11, vgg16
from ttfs_triton.nn.prepare import fold_batch_norm, put_on_grid, train_for
from ttfs_triton.nn.readout import FirstSpikeDecision, Readout, first_spike_decision, first_spike_times
from ttfs_triton.nn.statistics import (
    LayerStatistics,
    SpikeCounter,
    collect_statistics,
    record_statistics,
    reset_statistics,
    sparsity,
)

__all__ = [
    "AnalogEncoder",
    "DFTConv2d",
    "DFTLinear",
    "EarliestSpikePool2d",
    "Faults",
    "FirstSpikeDecision",
    "Grid",
    "LatencyEncoder",
    "LayerStatistics",
    "NetworkConfig",
    "NetworkError",
    "NetworkGraph",
    "Neuron",
    "Readout",
    "SignedEncoder",
    "SpikeCounter",
    "SpikeUpsample2d",
    "Stage",
    "TTFSNetwork",
    "Wire",
    "activation_to_spike_time",
    "cifarnet",
    "cnn1",
    "collect_statistics",
    "decide",
    "first_spike_decision",
    "first_spike_times",
    "fold_batch_norm",
    "network_graph",
    "parse_specification",
    "put_on_grid",
    "record_statistics",
    "reset_statistics",
    "resnet18",
    "resnet20",
    "sparsity",
    "standardise_weight",
    "start_as_identity",
    "train_for",
    "vgg11",
    "vgg16",
    "whiten",
]

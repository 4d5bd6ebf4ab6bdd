"""The firing rule of dynamic-firing-threshold neurons and its contractions, as PyTorch operators.

Activations in, activations out: a spike at time t of layer l is stored as a = (l + 1) − t in [0, 1], windows of
length 1; 1 fires at the window's start, 0 is silent.
"""

from ttfs_kernels.backends import available_backends, backend
from ttfs_kernels.fused import fuse_passes
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.normalised import Normalisation, Normalised, normalised_conv2d, normalised_linear
from ttfs_kernels.ops import dft_conv2d, dft_linear
from ttfs_kernels.standardise import standardise_weights

__all__ = [
    "Neuron",
    "Normalisation",
    "Normalised",
    "available_backends",
    "backend",
    "dft_conv2d",
    "dft_linear",
    "fuse_passes",
    "normalised_conv2d",
    "normalised_linear",
    "standardise_weights",
]

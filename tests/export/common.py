"""Small networks with every kind of layer, and images for them."""

import torch
from torch import Tensor, nn

from tests.nn.common import randomised
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

CONVOLUTIONAL = "4C3-P2-5C3p0-6"


def small_network(seed: int = 0, specification: str = CONVOLUTIONAL, scale: float = 1.0, **config) -> TTFSNetwork:
    """A network in evaluation mode, all parameters drawn anew; running statistics of batch norm too."""
    values = {"specification": specification, "in_channels": 2, "image_size": (9, 8), "classes": 3} | config
    network = TTFSNetwork(NetworkConfig(**values))
    randomised(network, seed, scale)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return network.eval()


def images_for(network: TTFSNetwork, samples: int = 4, seed: int = 0) -> Tensor:
    """Images with dark pixels, which never fire, and some of the brightest."""
    config = network.config
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, config.in_channels, *config.image_size)
    return (1.4 * torch.rand(shape, generator=generator) - 0.2).clamp(0, 1)

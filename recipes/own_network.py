"""A network of your own: any module made of layers of `ttfs_triton.nn`, with an encoder first and a readout last."""

import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.nn import DFTConv2d, DFTLinear, LatencyEncoder, Neuron, Readout

NEURON = Neuron(psp_persistence=0.25, surrogate_width=0.5)


class Network(nn.Module):
    """Four convolutions and a hidden layer. A skip leads from the second convolution to the fourth."""

    def __init__(self, in_channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.encoder = LatencyEncoder()
        self.conv1 = DFTConv2d(in_channels, 16, 5, padding=2, neuron=NEURON)
        self.conv2 = DFTConv2d(16, 32, 3, stride=2, padding=1, neuron=NEURON)
        self.conv3 = DFTConv2d(32, 32, 3, padding=1, neuron=NEURON)
        self.conv4 = DFTConv2d(32, 32, 3, padding=1, neuron=NEURON, skip=32)
        features = 32 * ((side // 2 + 1) // 2) ** 2
        self.hidden = DFTLinear(features, 128, neuron=NEURON)
        self.readout = Readout(128, classes, at="potential_end", neuron=NEURON)

    def forward(self, images: Tensor) -> Tensor:
        spikes = F.max_pool2d(self.conv1(self.encoder(images)), 2)  # the earliest spike of every patch
        second = self.conv2(spikes)
        fourth = self.conv4(self.conv3(second), skip=second)  # not a sum of spike times: see `DFTConv2d`
        return self.readout(self.hidden(fourth.flatten(1)))


def build(in_channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """Build the network. Your function may leave out arguments that it does not need."""
    return Network(in_channels, image_size[0], classes)

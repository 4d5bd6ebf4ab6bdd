"""A network that adds spike times is refused by all who take one, with the same sentence and remedy.

Each kind of refusal is tested in `tests/nn/test_graph.py`.
"""

from functools import partial

import pytest
import torch
from torch import nn

from ttfs_triton.chip import simulate
from ttfs_triton.energy import count, counting
from ttfs_triton.evaluate.result import spikes_of
from ttfs_triton.export import to_nir, to_onnx
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import DFTConv2d, LatencyEncoder, NetworkError, Readout, network_graph
from ttfs_triton.train import ConfigError, TrainConfig, Trainer

SHAPE = (1, 8, 8)
IMAGES = torch.zeros(4, *SHAPE, dtype=torch.uint8)
LABELS = torch.arange(4) % 2
PIXELS = IMAGES / 255


class Sum(nn.Module):
    """Two paths whose spike times are added."""

    def __init__(self):
        super().__init__()
        self.encoder = LatencyEncoder()
        self.one, self.other = (DFTConv2d(1, 2, 3, padding=1) for _ in range(2))
        self.readout = Readout(128, 2)

    def forward(self, images):
        spikes = self.encoder(images)
        return self.readout((self.one(spikes) + self.other(spikes)).flatten(1))


TAKERS = {
    "count": lambda network: count(network, [PIXELS]),
    "counting": lambda network: counting(network, image_shape=SHAPE).__enter__(),
    "simulate": lambda network: simulate(network, [PIXELS]),
    "onnx": partial(to_onnx, image_shape=SHAPE),
    "nir": partial(to_nir, image_shape=SHAPE),
    "save": lambda network: TTFSModel.from_network(network, image_shape=SHAPE),
    "report": lambda network: spikes_of(network, PIXELS[0]),
    "train": lambda network: Trainer(network, ((IMAGES, LABELS), (IMAGES, LABELS)), TrainConfig(cpu=True)),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_wrong_network_is_refused_by_all_alike(taker):
    with pytest.raises(NetworkError, match=r"^network_graph: model must .*; got .*\. [A-Z].*\.$") as refused:
        network_graph(Sum(), SHAPE)
    if taker in ("onnx", "nir"):
        pytest.importorskip(taker)
    with pytest.raises((NetworkError, ConfigError)) as again:
        TAKERS[taker](Sum())
    assert str(again.value) == str(refused.value)

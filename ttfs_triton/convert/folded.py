"""The source network with everything folded: plain layers, one weight and one bias each."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ttfs_triton.convert.layouts import skeleton
from ttfs_triton.nn import EarliestSpikePool2d, LatencyEncoder, NetworkConfig
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLinear


class FoldedANN(nn.Module):
    """An artificial network of plain PyTorch layers that computes what the source of a conversion computes.

    Input [N, in_channels, height, width] images as `config` says (pixels in [0, 1]), output [N, classes] logits.

    Args:
        config: specification, encoder, mean, std and sizes; what it says of neurons is not used.
        tensors: "conv1.weight", "conv1.bias", ..., "readout.bias": every layer's, nothing else.
        bound: upper bound of hidden activations, 1 for a clamped ReLU; None for a plain one.
    Attributes:
        layers: `nn.ModuleDict` in the order of computation: `nn.Conv2d` and `nn.Linear` by the names of `TTFSNetwork`
            ("conv1", ..., "fc1", ..., "readout"), all with bias, and what lies between them ("pool1", "flatten").
    Raises:
        ValueError: tensors are missing, superfluous or of another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig, tensors: Mapping[str, Tensor], bound: float | None = 1.0) -> None:
        super().__init__()
        self.config, self.bound = config, bound
        network = skeleton(config)
        self.layers = nn.ModuleDict()
        for name, layer in [*network.features.named_children(), ("readout", network.readout)]:
            if not isinstance(layer, LatencyEncoder):
                self.layers[name] = _plain(layer)
        try:
            self.layers.load_state_dict(dict(tensors), assign=True)
        except RuntimeError as error:
            raise ValueError(f"FoldedANN: tensors must be those of {config.specification}; {error}") from error
        self.requires_grad_(False)
        dtype = next(self.layers.parameters()).dtype
        for name, values, default in (("mean", config.mean, 0.0), ("std", config.std, config.max_value)):
            buffer = torch.tensor([default] * config.in_channels if values is None else values)
            self.register_buffer(name, buffer.view(-1, 1, 1).to(dtype), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images, {})

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """Activations of every hidden layer by name, [N, channels, height, width] or [N, features], before pooling."""
        found: dict[str, Tensor] = {}
        self._run(images, found)
        return found

    def encode(self, images: Tensor) -> Tensor:
        """What the first layer reads: normalised images, clamped to [0, 1] for a latency encoder."""
        x = (images - self.mean) / self.std
        return x.clamp(0, 1) if self.config.encoder == "latency" else x

    def run_layer(self, name: str, x: Tensor) -> Tensor:
        """One of `layers` and what its neurons make of it: [N, ...] activations, logits behind the readout."""
        layer = self.layers[name]
        x = layer(x)
        hidden = isinstance(layer, nn.Conv2d | nn.Linear) and name != "readout"
        return x.clamp(0, self.bound) if hidden else x

    def _run(self, images: Tensor, hidden: dict[str, Tensor]) -> Tensor:
        x = self.encode(images)
        for name, layer in self.layers.items():
            x = self.run_layer(name, x)
            if isinstance(layer, nn.Conv2d | nn.Linear) and name != "readout":
                hidden[name] = x
        return x


def _plain(layer: nn.Module) -> nn.Module:
    """The PyTorch layer of the same shape, without memory for its weights yet."""
    if isinstance(layer, WeightedConv2d):
        return nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, device="meta"
        )
    if isinstance(layer, WeightedLinear):
        return nn.Linear(layer.in_features, layer.out_features, device="meta")
    if isinstance(layer, EarliestSpikePool2d):
        return nn.MaxPool2d(layer.kernel_size, layer.stride)
    assert isinstance(layer, nn.Flatten)
    return nn.Flatten()

"""An ANN of versions that had layers of their own for it: its files, and what they computed."""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_triton.model import ModelDescription
from ttfs_triton.model.files import CONFIG_CHECKSUM
from ttfs_triton.model.weights import weight_bytes
from ttfs_triton.nn import NetworkConfig, TTFSNetwork, network_graph
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.weighted import WeightedConv2d


class EarlierANN:
    """Convolutions, batch norm that does something, clamped ReLU; weights possibly standardised.

    Args:
        config: of the network; its `batch_norm` and `weight_standardisation` are the ANN's, which could have both.
        seed: of the weights.
    Attributes:
        tensors: of its state dict.
    """

    def __init__(self, config: NetworkConfig, seed: int = 0) -> None:
        self.config = config
        self._network = TTFSNetwork(config.replace(batch_norm=False))
        self._graph, generator = network_graph(self._network), torch.Generator().manual_seed(seed)
        self.tensors = dict(self._network.state_dict())
        for stage in self._graph.weighted[:-1] if config.batch_norm else ():
            path, channels = f"features.{stage.name}", len(stage.weighted.weight)
            self.tensors.pop(f"{path}.bias", None)
            norm = {name: torch.empty(channels) for name in ("weight", "bias", "running_mean", "running_var")}
            self.tensors |= {f"{path}.batch_norm.{name}": tensor for name, tensor in norm.items()}
            self.tensors[f"{path}.batch_norm.num_batches_tracked"] = torch.tensor(7)
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                lowest = 0.4 if name.endswith(("running_var", "batch_norm.weight", "weight_gain")) else -0.2
                tensor.copy_(lowest + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)

    def description(self) -> dict[str, object]:
        """The content of its config.json."""
        values = ModelDescription.of(self.config).to_dict()
        return values | {"network": values["network"] | {"neuron": "ann"}}

    def write(self, folder: Path) -> Path:
        """Write both files as a run did; returns the folder of the run."""
        (folder / "best").mkdir(parents=True)
        config = json.dumps(self.description()).encode()
        (folder / "best" / "config.json").write_bytes(config)
        checksum = {CONFIG_CHECKSUM: hashlib.sha256(config).hexdigest()}
        (folder / "best" / "model.safetensors").write_bytes(weight_bytes(self.tensors, checksum))
        return folder

    def __call__(self, images: Tensor) -> Tensor:
        """Logits."""
        return self._graph.run(images, self._fire)

    def _fire(self, stage: Stage, x: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind == "latency":
            return x / self.config.max_value
        path = stage.name if stage.kind == "readout" else f"features.{stage.name}"
        own = {name.removeprefix(f"{path}."): tensor for name, tensor in self.tensors.items() if name.startswith(path)}
        if stage.kind == "analog":
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.config.mean, self.config.std))
            x = (x - mean) / std
        weight, layer = own["weight"], stage.weighted
        if "weight_gain" in own:
            flat = weight.flatten(1) - weight.flatten(1).mean(1, keepdim=True)
            weight = (own["weight_gain"][:, None] * flat / flat.norm(dim=1, keepdim=True)).view_as(weight)
        for dimension in range(2, weight.dim()) if weight.dim() == 4 else (1,):
            weight = weight.repeat_interleave(layer.average, dimension) / layer.average
        if isinstance(layer, WeightedConv2d):
            x = F.conv2d(x, weight, own.get("bias"), layer.stride, layer.padding)
        else:
            x = F.linear(x, weight, own.get("bias"))
        if "batch_norm.weight" in own:
            norm = (own[f"batch_norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
            x = F.batch_norm(x, *norm)
        if skip is not None:
            x[:, : layer.skip] += own["skip_weight"].view(-1, *[1] * (x.dim() - 2)) * skip[:, : layer.skip]
        return x if stage.kind == "readout" else x.clamp(0, 1)

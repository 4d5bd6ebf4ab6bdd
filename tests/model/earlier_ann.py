"""An ANN of versions that had layers of their own for it: its files, and what it computed."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ttfs_triton.model import ModelDescription
from ttfs_triton.model.files import CONFIG_CHECKSUM
from ttfs_triton.model.weights import weight_bytes
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork, standardise_weight


class EarlierANN:
    """Convolutions, batch norm that does something, clamped ReLU; weights possibly standardised.

    It computes what a network at σ = 0 does in evaluation, whose batch norm is not folded.

    Args:
        config: of the network; its `batch_norm` and `weight_standardisation` are the ANN's, which could have both.
        seed: of the weights.
    Attributes:
        tensors: of its state dict.
    """

    def __init__(self, config: NetworkConfig, seed: int = 0) -> None:
        self.config, generator = config, torch.Generator().manual_seed(seed)
        self._network = TTFSNetwork(config.replace(neuron=Neuron(0.0))).eval()
        self.tensors = dict(self._network.state_dict())  # the network's own tensors
        for name, tensor in self.tensors.items():
            if name.endswith(("running_mean", "running_var", "bias", "gain", "norm.weight", "skip_weight")):
                lowest = 0.4 if name.endswith(("running_var", "norm.weight", "gain")) else -0.2
                tensor.copy_(lowest + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        if config.batch_norm and config.weight_standardisation:  # which our networks do not have together
            for name in [name for name in self.tensors if name.endswith("norm.weight") or name == "readout.weight"]:
                layer = name.removesuffix(".weight").removesuffix(".batch_norm")
                plain = self.tensors[f"{layer}.weight"]
                gain = 0.4 + torch.rand(len(plain), generator=generator)
                self.tensors |= {f"{layer}.weight": plain.clone(), f"{layer}.weight_gain": gain}
                with torch.no_grad():
                    plain.copy_(standardise_weight(plain, gain))

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
        return self._network(images)

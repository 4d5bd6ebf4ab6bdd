"""Networks of other projects, small and with random weights, and their files."""

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.convert import Converted, Weights, fit_range
from ttfs_triton.nn import NetworkConfig, Neuron, Stage, TTFSNetwork, network_graph

PLAN = (4, "M", 6, "M", 8, 8, "M", 8, 8, "M", 10, 10, "M")  # VGG11, narrow
TIMM_CONFIG = {"mean": [0.49, 0.48, 0.45], "std": [0.2, 0.19, 0.21]}
NARROW = "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2"  # of `PLAN`


def chain(specification: str = NARROW, **changes: Any) -> NetworkConfig:
    """The network that an ANN of another project becomes; its mean and std are read from `TIMM_CONFIG`."""
    values = {"in_channels": 3, "image_size": (32, 32), "encoder": "analog", "neuron": Neuron(0.0)}
    return NetworkConfig(specification, **(values | changes))


def features(plan: Sequence[int | str] = PLAN, batch_norm: bool = True, channels: int = 3) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        norm = [nn.BatchNorm2d(item)] if batch_norm else []
        layers += [nn.Conv2d(channels, item, 3, padding=1), *norm, nn.ReLU()]
        channels = item
    return layers


def named(**modules: nn.Module) -> nn.Module:
    """Modules by name, one after the other."""
    return nn.Sequential(OrderedDict(modules))


def vgg(inputs: int, classes: int = 10, **plan: Any) -> nn.Module:
    """Named as torchvision names its layers, with one layer behind the convolutions, which has so many inputs."""
    return named(features=nn.Sequential(*features(**plan)), flatten=nn.Flatten(), classifier=nn.Linear(inputs, classes))


def torchvision(classes: int = 10, side: int = 1, batch_norm: bool = True, hidden: int = 12) -> nn.Module:
    """Torchvision's own is the one with side=7."""
    return named(
        features=nn.Sequential(*features(batch_norm=batch_norm)),
        avgpool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(
            *(nn.Linear(10 * side**2, hidden), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes)),
        ),
    )


def one_layer_head(classes: int = 10) -> nn.Module:
    return vgg(10, classes)


def convolutional_head(classes: int = 7) -> nn.Module:
    """Named as timm names the layers of a VGG, whose head has convolutions in place of its first linear layers."""
    head = named(fc1=nn.Conv2d(6, 12, 4), act1=nn.ReLU(), fc2=nn.Conv2d(12, 9, 1), act2=nn.ReLU())
    trunk = nn.Sequential(*features((5, "M", 6, 6, "M")))
    return named(features=trunk, pre_logits=head, flatten=nn.Flatten(), head=nn.Linear(9, classes))


def normalised_head(classes: int = 10) -> nn.Module:
    """Batch norm without γ and β, and one behind a linear layer."""
    trunk = features((5, "M"))
    trunk[1] = nn.BatchNorm2d(5, affine=False)
    return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(80, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, classes))


class Paper(nn.Module):
    """The paper's VGG, narrow, with the names of its files and no biases. As an ANN, ReLU is clamped to [0, 1]."""

    def __init__(
        self,
        classes: int = 10,
        plan: Sequence[int | str] = PLAN,
        channels: int = 3,
        kernel: int = 3,
        padding: int = 1,
        hidden: Sequence[int] = (10, 12, 9),
    ) -> None:
        super().__init__()
        self.conv, self.fc = nn.Sequential(), nn.Sequential()
        for item in plan:
            if isinstance(item, str):
                self.conv.append(nn.MaxPool2d(2))
            else:
                self.conv.append(named(cnn=nn.Conv2d(channels, item, kernel, padding=padding, bias=False)))
                self.conv.append(nn.Hardtanh(0, 1))
                channels = item
        for inputs, outputs in itertools.pairwise((*hidden, classes)):
            self.fc.append(named(linear=nn.Linear(inputs, outputs, bias=False))).append(nn.Hardtanh(0, 1))
        del self.fc[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def digits(kernel: int = 3, hidden: Sequence[int] = (16,)) -> Paper:
    """The paper's networks for MNIST: gray images, convolutions that are not padded."""
    side = ((28 - kernel + 1) // 2 - kernel + 1) // 2
    return Paper(plan=(4, "M", 6, "M"), channels=1, kernel=kernel, padding=0, hidden=(6 * side**2, *hidden))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with weights that keep activations alive and batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (6 / module.weight[0].numel()) ** 0.5
            fill(module.weight, -bound, bound)
            if module.bias is not None:
                fill(module.bias, -0.3, 0.3)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            fill(module.running_mean, -0.5, 0.5)
            fill(module.running_var, 0.2, 2)
            if module.affine:
                fill(module.weight, -0.5, 1.5)
                fill(module.bias, -0.3, 0.3)
    return model.eval()


def weights_of(tensors: Mapping[str, Tensor] | nn.Module, config: Mapping[str, Any] | None = None) -> Weights:
    """Weights as if read from a file. Default configuration: mean and std, as timm writes them."""
    if isinstance(tensors, nn.Module):
        tensors = tensors.state_dict()
    return Weights(
        {name: tensor.detach() for name, tensor in tensors.items()},
        "file.pt",
        Path("file.pt"),
        "0" * 64,
        config=TIMM_CONFIG if config is None else config,
    )


def in_range(converted: Converted, images: Tensor) -> TTFSNetwork:
    """The network, scaled so that on these images nothing is clipped."""
    network = converted.network
    if not converted.bounded:
        fit_range(network, images, percentile=100, samples=10**9)
    return network


def hidden(network: TTFSNetwork, images: Tensor) -> dict[str, Tensor]:
    """Activations of each hidden layer, before pooling."""
    found: dict[str, Tensor] = {}

    def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        found[stage.name] = stage.activations(inputs, skip)
        return found[stage.name]

    network_graph(network).run(images, fire)
    return dict(list(found.items())[:-1])


@torch.no_grad()
def assert_same_logits(converted: Converted, source: nn.Module, images: Tensor, tolerance: float = 1e-4) -> None:
    """A network converted for σ = 0 computes the source's logits, which differ between images and classes."""
    config = converted.network.config
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.mean, config.std))
    expected = source((images - mean) / std)
    assert expected.std(0).max() > 10 * tolerance
    torch.testing.assert_close(in_range(converted, images)(images), expected, atol=tolerance, rtol=tolerance)

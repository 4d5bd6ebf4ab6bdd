"""Networks by name: CNN1, VGG11 and VGG16 of the paper, ResNets, and `cifarnet`, a small one that trains fast."""

from typing import Any

from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.models import TTFSNetwork
from ttfs_triton.nn.weighted import Size, pair

CNN1 = "16C5-P2-32C5p0-P2-128"
VGG11 = "64C3-P2-128C3-P2-256C3-256C3-P2-512C3-512C3-P2-512C3-512C3-P2-4096-4096"
VGG16 = "64C3-64C3-P2-128C3-128C3-P2-256C3-256C3-256C3-P2-512C3-512C3-512C3-P2-512C3-512C3-512C3-P2-4096-4096"
RESNET18 = "64C3-(64C3-64C3)x2" + "".join(f"-({n}C3s2-{n}C3)-({n}C3-{n}C3)" for n in (128, 256, 512)) + "-A"
RESNET20 = "16C3-(16C3-16C3)x3" + "".join(f"-({n}C3s2-{n}C3)-({n}C3-{n}C3)x2" for n in (32, 64)) + "-A"


def cifarnet_specification(
    width: float = 1.0, convolutions: int = 2, in_channels: int = 3, channels: tuple[int, int, int] = (64, 256, 256)
) -> str:
    """Specification of the hidden layers of `cifarnet`.

    Args:
        width: factor on the blocks' channels.
        convolutions: convolutions per block; with three, a skip leads past the last two.
        in_channels: channels of the images; the encoder has two channels per value of a 2×2 patch.
        channels: channels of the three blocks, at width 1.
    """
    if convolutions not in (2, 3) or not width > 0:
        raise ValueError(
            f"cifarnet: convolutions must be 2 or 3 a block, and width positive; got {convolutions} and {width}."
        )
    blocks = []
    for size in channels:
        layer = f"{max(1, round(width * size))}C3"
        blocks.append(f"{layer}-P2-{layer}" if convolutions == 2 else f"{layer}-P2-({layer}-{layer})")
    return "-".join([f"{8 * in_channels}C2", *blocks, "P3"])


# Per-channel mean and standard deviation of CIFAR-10's training images, pixels in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def cnn1(image_size: Size = 28, in_channels: int = 1, classes: int = 10, **options: Any) -> TTFSNetwork:
    """The paper's network for MNIST, 16C5-P2-32C5-P2-800-128-10 ("800" is the flattened size), latency encoder.

    Args:
        image_size: side of square images, or (height, width).
        in_channels, classes: channels of the images, and number of classes; `num_classes` is understood, too.
        **options: any other field of `NetworkConfig`, and `backend` as in `TTFSNetwork`.
    Example:
        >>> from ttfs_triton.nn import Neuron
        >>> cnn1(neuron=Neuron(psp_persistence=0.25))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return _network(CNN1, image_size, in_channels, classes, {"encoder": "latency"} | options)


def vgg11(image_size: Size = 32, in_channels: int = 3, classes: int = 10, **options: Any) -> TTFSNetwork:
    """VGG11 without batch norm, ending 512-4096-4096-classes; its first convolution is the analog encoder.

    Args:
        image_size, in_channels, classes, **options: as in `cnn1`; `width=0.5` halves every hidden layer. Mean and std
            are CIFAR-10's for three channels unless given.
    Example:
        >>> vgg11(classes=100, width=0.125)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """
    return _network(VGG11, image_size, in_channels, classes, options)


def vgg16(image_size: Size = 32, in_channels: int = 3, classes: int = 10, **options: Any) -> TTFSNetwork:
    """VGG16, as `vgg11`, with thirteen convolutions."""
    return _network(VGG16, image_size, in_channels, classes, options)


def cifarnet(
    image_size: Size = 32,
    in_channels: int = 3,
    classes: int = 10,
    *,
    width: float = 1.0,
    convolutions: int = 2,
    channels: tuple[int, int, int] = (64, 256, 256),
    **options: Any,
) -> TTFSNetwork:
    """A small, fast network for 32×32 images: a whitened encoder of 2×2 patches, three blocks, batch norm.

    2.0 million weights at width 1. Training whitens its encoder; a loop of your own calls
    `whiten(network.features.conv1, images)` first.

    Args:
        image_size, in_channels, classes, **options: as in `vgg11`.
        width, convolutions, channels: see `cifarnet_specification`.
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, for the sequence of layers.
    Example:
        >>> cifarnet()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    options = {"encoder": "whitened", "batch_norm": True} | options
    specification = cifarnet_specification(width, convolutions, in_channels, channels)
    return _network(specification, image_size, in_channels, classes, options)


def resnet20(image_size: Size = 32, in_channels: int = 3, classes: int = 10, **options: Any) -> TTFSNetwork:
    """ResNet-20 for small images: nine blocks of two convolutions, whose skips delay spikes by one window.

    Its first convolution is the analog encoder. Where maps get smaller, the skip takes every second row and column, and
    additional channels get no skip. The readout averages whole maps.

    Args:
        image_size, in_channels, classes, **options: as in `vgg11`.
    Source: He et al., "Deep residual learning for image recognition", 2016, section 4.2, option A.
    Example:
        >>> resnet20()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _network(RESNET20, image_size, in_channels, classes, options)


def resnet18(image_size: Size = 32, in_channels: int = 3, classes: int = 10, **options: Any) -> TTFSNetwork:
    """ResNet-18 with a first convolution for small images, built like `resnet20`: eight blocks, 64 to 512 channels."""
    return _network(RESNET18, image_size, in_channels, classes, options)


def _network(specification: str, size: Size, in_channels: int, classes: int, options: dict[str, Any]) -> TTFSNetwork:
    backend = options.pop("backend", "auto")
    values: dict[str, Any] = {"specification": specification, "in_channels": in_channels, "image_size": pair(size)}
    values |= {"encoder": "analog", "classes": options.pop("num_classes", classes)} | options
    if values["encoder"] != "latency" and in_channels == 3:
        values = {"mean": CIFAR10_MEAN, "std": CIFAR10_STD} | values
    return TTFSNetwork(NetworkConfig(**values), backend=backend)

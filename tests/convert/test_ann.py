"""Any ANN as spikes: the same logits at σ = 0, less lost when calibrated, refused before work begins."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm

from tests.convert import sources
from tests.convert.sources import randomised
from ttfs_triton import TTFSModel
from ttfs_triton.chip import simulate
from ttfs_triton.convert import ConversionError, convert_ann
from ttfs_triton.energy import count
from ttfs_triton.nn import TTFSNetwork, network_graph


class GroupsAndDilation(nn.Module):
    """Odd kernels too, a pool in front of its ReLU, and what functions and methods of tensors do."""

    image_shape = (4, 24, 20)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=4)
        self.conv3 = nn.Conv2d(8, 6, 2, stride=2)
        self.hidden, self.readout = nn.Linear(6 * 3 * 3, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.norm(self.conv1(x)), 2), inplace=True)
        x = F.avg_pool2d(self.conv2(x).relu(), 2)
        x = F.adaptive_avg_pool2d(torch.clamp(self.conv3(x), 0, 2), 3)
        x = self.hidden(x.view(x.size(0), -1))
        return self.readout(F.dropout(F.hardtanh(x, 0, 1), 0.5, self.training))


class FlatSkip(nn.Module):
    """A skip of flattened maps, of several features for each channel, or of a layer beside."""

    def __init__(self, beside: bool = False) -> None:
        super().__init__()
        self.conv, self.hidden, self.readout = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 64), nn.Linear(64, 5)
        self.beside = nn.Sequential(nn.Linear(64, 64), nn.ReLU()) if beside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), x.size(2) // 4).flatten(1)
        return self.readout(F.relu(self.hidden(x) + self.beside(x)))


class Fires(nn.Module):
    """Two fire modules as in SqueezeNet, a branch that pools, and a head on activations of two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.squeeze = nn.Conv2d(6, 3, 1)
        self.expand1, self.expand3 = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.mix, self.readout = nn.Conv2d(15, 6, 3, padding=1, groups=3), nn.Linear(21, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = F.relu(self.stem(x))
        squeezed = F.relu(self.squeeze(stem))
        expanded = torch.cat((F.relu(self.expand1(squeezed)), F.relu6(self.expand3(squeezed))), dim=1)
        mixed = F.relu(self.mix(F.max_pool2d(torch.cat([expanded, F.max_pool2d(stem, 3, 1, 1)], -3), 2)))
        both = torch.cat([F.max_pool2d(mixed, 2), F.max_pool2d(torch.cat([expanded, stem], 1), 4)], 1)
        return self.readout(both.mean((2, 3)))


class Block(nn.Module):
    """A residual block; where it begins a stage, option A slices and pads, option B has a 1×1 convolution."""

    def __init__(self, inputs: int, channels: int, option: str, activation: nn.Module) -> None:
        super().__init__()
        stride = 1 if inputs == channels else 2
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.activation, self.around = activation, (channels - inputs) // 2
        self.shortcut: nn.Module = nn.Identity()
        if option == "B":
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        if self.around and isinstance(self.shortcut, nn.Identity):
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.around, self.around), "constant", 0)
        out += self.shortcut(x)
        return self.activation(out)


class Residual(nn.Module):
    """As ResNets for CIFAR, smaller; a depthwise layer behind them."""

    def __init__(
        self, option: str = "A", activation: Callable[[], nn.Module] = nn.ReLU, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.stem, self.activation = nn.Conv2d(3, 4, 3, padding=1), activation()
        sizes = ((4, 4), (4, 8), (8, 8), (8, 16))
        self.blocks = nn.Sequential(*(Block(*size, option, self.activation) for size in sizes))
        if depthwise:
            self.blocks.append(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()))
        self.linear = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.activation(self.stem(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class Inverted(nn.Module):
    """Linear bottlenecks as in MobileNet, added and read twice, pools of partial patches, means as logits."""

    image_shape = (3, 12, 10)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.narrow = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
        self.block = nn.Sequential(
            *(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1)),
        )
        # A depthwise layer that is linear, and one behind a 1×1 convolution without bias, which may pad.
        self.separable = nn.Sequential(nn.Conv2d(4, 4, 3, 2, groups=4, bias=False), nn.Conv2d(4, 6, 1), nn.ReLU())
        self.dilated = nn.Sequential(nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(3, 5, 3, 1, 2, 2), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrow(self.pool(F.relu(self.stem(x))))
        x = x + self.block(x)
        return F.max_pool2d(self.dilated(self.separable(x)), 2, ceil_mode=True).mean((2, 3))


class Sums(nn.Module):
    """Additions of activations, twice, of layers beside each other, of concatenations, and in front of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 8)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.wide, self.norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + x)
        y = x + F.relu(self.convs[0](x))
        z = F.relu(self.convs[1](y) + x + y)
        beside = self.convs[2](x)
        F.relu_(beside)
        out = F.relu(self.norm(self.wide(z) + torch.cat([beside, z], 1)))
        out = F.max_pool2d(out, 6).flatten(1)
        return F.relu(self.linear(out)) + self.linear(out)


def averaging(pool: nn.Module, norm: Callable[..., nn.Module] = lambda layer: layer) -> nn.Module:
    return nn.Sequential(norm(nn.Conv2d(1, 4, 3, padding=1)), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 5))


def plain() -> nn.Module:
    """Fully connected, of pixels as spike times."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))


BUILDS = [
    (GroupsAndDilation, (4, 24, 20), None),
    (Fires, (3, 12, 12), None),
    (plain, (3, 4, 4), "20"),
    (FlatSkip, (3, 8, 8), None),
    (lambda: FlatSkip(beside=True), (3, 8, 8), None),
    (Residual, (3, 12, 12), "4C3-(4C3-4C3)-(8C3s2-8C3)-(8C3-8C3)-(16C3s2-16C3)-A"),
    (lambda: Residual(depthwise=True), (3, 12, 12), "4C3-(4C3-4C3)-(8C3s2-8C3)-(8C3-8C3)-(16C3s2-16C3)-16C3-A"),
    (lambda: Residual("B"), (3, 13, 13), None),
    (Inverted, (3, 12, 10), None),
    (Sums, (3, 6, 6), None),
    (lambda: averaging(nn.MaxPool2d(4, 8, 1)), (1, 8, 8), "4C3-P4p1s8"),
    (lambda: averaging(nn.AvgPool2d(7)).append(nn.BatchNorm1d(5)), (1, 8, 8), "4C3"),  # not over whole maps
    (lambda: nn.Sequential(nn.AvgPool2d(2), *averaging(nn.AvgPool2d(4, 1))), (1, 8, 8), None),  # of images
    (lambda: averaging(nn.AvgPool2d(8), spectral_norm), (1, 8, 8), "4C3-A"),
    (sources.torchvision, (3, 64, 32), "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2-A-12-12"),
]


@pytest.mark.parametrize(("build", "shape", "specification"), BUILDS)
@torch.no_grad()
def test_converted_ann_computes_the_same_without_a_slope(build, shape, specification, device):
    model, images = randomised(build()).to(device).train(), torch.rand(12, *shape, device=device)
    network, report = convert_ann(model, images)
    assert model.training
    expected = model.eval()(images)
    assert expected.std(0).max() > 1e-3
    torch.testing.assert_close(network(images), expected, atol=1e-4, rtol=1e-4)
    assert isinstance(network, TTFSNetwork) == (specification is not None)
    assert specification is None or network.config.specification == specification
    assert report.same_decisions == 1
    assert report.calibration is None
    assert max(report.logits, *(layer.copied or 0 for layer in report.layers)) < 1e-4
    assert all(layer.clipped < 0.02 for layer in report.layers)


@pytest.mark.parametrize("option", ["A", "B"])
@torch.no_grad()
def test_residual_networks_clamp_as_their_ann(option):
    """In float64, with activations that reach their upper bound: each layer's, and the logits."""
    model = randomised(Residual(option, lambda: nn.Hardtanh(0, 0.5))).double()
    images = torch.rand(8, 3, 12, 12, dtype=torch.float64)
    network, report = convert_ann(model, images)
    torch.testing.assert_close(network(images), model(images), atol=1e-6, rtol=1e-6)
    assert max(layer.copied for layer in report.layers) < 1e-6
    assert {layer.clip for layer in report.layers} == {0.5}
    seen = []
    model.activation.register_forward_hook(lambda *args: seen.append(args[-1]))
    model(images)
    assert sum(int((each == 0.5).sum()) for each in seen) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "squeezenet1_1", "mobilenet_v2", "googlenet"])
@torch.no_grad()
def test_networks_of_torchvision_decide_the_same(name):
    models = pytest.importorskip("torchvision", reason="its networks need torchvision").models
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model, images = models.get_model(name, num_classes=10, **options), torch.rand(16, 3, 64, 64)
    model(images)  # takes statistics
    network, report = convert_ann(model, images)
    assert report.same_decisions == 1
    assert report.logits < 1e-4
    torch.testing.assert_close(network(images), model.eval()(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [GroupsAndDilation, Inverted])
@torch.no_grad()
def test_calibration_loses_less_and_the_package_takes_the_network(build, tmp_path):
    model, images = randomised(build()), torch.rand(32, *build.image_shape)
    network, report = convert_ann(model, images, psp_persistence=0.5)
    graph = network_graph(network)
    assert [layer.name for layer in report.layers] == [stage.name for stage in graph.weighted[:-1]]
    hidden = report.layers[1:] if graph.encoder.kind == "analog" else report.layers
    assert all(layer.calibrated < layer.copied for layer in hidden)
    assert [layer.name for layer in report.calibration.layers] == [layer.name for layer in report.layers]
    assert count(network, [images]).total()["synaptic_operations"] > 0
    assert report.to_dict()["layers"][0]["folded"] == ["batch norm"]
    assert simulate(network, [(images, model(images).argmax(1))], steps=16, weight_bits=8).accuracy > 0
    saved = TTFSModel.from_network(network, builder="mine")
    saved.save_pretrained(tmp_path)
    again = convert_ann(model, images[:2], psp_persistence=0.5, calibrate=False)[0]
    assert torch.equal(TTFSModel.from_pretrained(tmp_path, network=again)(images), network(images))


def test_clip_is_the_bound_or_the_percentile():
    images, layers = torch.rand(24, 3, 12, 12), sources.features((6, 6, 6))
    layers[2] = nn.ReLU6()
    model = randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))
    losses = [convert_ann(model, images, percentile=p)[1].layers for p in (99.9, 90.0)]
    for first, (tight, loose) in zip((True, False, False), zip(*losses, strict=True), strict=True):
        assert (tight.clip == loose.clip == 6) if first else (tight.clip > loose.clip)
        assert first or loose.clipped > tight.clipped
    with pytest.raises(ConversionError, match=r"percentile must be in \(0, 100\]; got nan"):
        convert_ann(model, images, percentile=float("nan"))
    with pytest.raises(ConversionError, match="at least one image"):
        convert_ann(model, images[:0])


@torch.no_grad()
def test_mean_and_std_go_to_an_analog_encoder():
    model, images = randomised(sources.torchvision(batch_norm=False)), torch.rand(8, 3, 32, 32)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    network, _ = convert_ann(model, images, psp_persistence=0.0, percentile=100, mean=mean, std=std)
    expected = model((images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
    torch.testing.assert_close(network(images), expected, atol=1e-4, rtol=1e-4)
    latency, _ = convert_ann(model, images, psp_persistence=0.0, percentile=100, encoder="latency")
    assert latency.config.encoder == "latency"
    torch.testing.assert_close(latency(images), model(images), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConversionError, match=r"encoder must be analog with mean and std, .*; got encoder latency"):
        convert_ann(model, images, encoder="latency", mean=mean)
    with pytest.raises(ConversionError, match=r"run on images \[1, 32, 32\]"):  # no gray ones, seen as three channels
        convert_ann(model, images[:, :1], mean=mean)
    with pytest.raises(ValueError, match=r"mean must have one entry per channel \(3\); got \(0\.5,\)"):
        convert_ann(model, images, mean=[0.5], std=std)
    with pytest.raises(ConversionError, match="a plain convolution with that encoder; got encoder analog"):
        convert_ann(plain(), images[:, :, :4, :4], encoder="analog")


class _Function(nn.Module):
    """A convolution, a function of its output, and a head."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.LazyLinear(2), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.conv(x)).flatten(1))


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *modules, nn.Flatten(), nn.LazyLinear(2))


def strided_shortcut() -> nn.Module:
    """A block whose shortcut's kernel has no place in the main path's, which has another stride."""
    block = Block(4, 8, "B", nn.ReLU())
    block.shortcut = nn.Conv2d(4, 8, 3, 2, 1)
    return block


REFUSED = [
    (chain(nn.GELU()), r"GELU \(1\)\. Use in its place Conv2d"),
    (chain(nn.Hardtanh()), r"Hardtanh \(1\), Hardtanh\(.*\) behind _0"),
    (chain(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()), r"Conv2d \(1\), behind _0 without an activation function"),
    (chain(nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU()), "whose pool or padding keeps both from becoming one"),
    (chain(nn.ReLU(), nn.BatchNorm2d(4)), r"BatchNorm2d \(2\), BatchNorm2d that is not right behind a Conv2d"),
    (chain(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()), "without running statistics"),
    (chain(nn.ReLU(), nn.MaxPool2d(2, dilation=2)), r"MaxPool2d \(2\), .*dilation=2.* from \[4, 8, 8\] to \[4, 3, 3\]"),
    (chain(nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)), r"MaxPool2d \(3\), behind an average pool"),
    (chain(nn.AvgPool2d(2), nn.ReLU()), "AvgPool2d in front of an activation function"),
    (chain(nn.ReLU(), nn.AvgPool2d(3, 1), nn.Conv2d(4, 4, 1), nn.ReLU()), "whose square windows do not divide"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular"), nn.ReLU()), r"padding_mode='circular', padding=\(0"),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "an output that no Linear layer computes"),
    (nn.Linear(1, 1).requires_grad_(False).apply(lambda own: own.bias.fill_(torch.nan)), "have finite weights; got 1"),
    (_Function(lambda x: F.dropout(x.relu())), r"dropout\(\) in \w+, which drops out in evaluation too"),
    (_Function(lambda x: x.clamp(min=0.1)), r"clamp\(\) in \w+"),
    (_Function(lambda x: F.relu(x) * 2), r"mul\(\) in \w+"),
    (_Function(lambda x: F.relu(x) + F.relu(x)), r"Conv2d \(conv\), whose output is read more than once in front"),
    (_Function(lambda x: F.relu(x + 1)), r"add\(\) in \w+, an addition that is not of two outputs of one shape"),
    (_Function(lambda x: F.relu(F.max_pool2d(x, 2) + F.max_pool2d(x, 2))), "an addition behind a pool, in front of an"),
    (_Function(lambda x: (F.relu_(x[:, :, ::2]), F.relu(x))[1]), "without a change in place through a view"),
    (_Function(lambda x: F.relu(F.pad(x.relu(), (0, 0, 0, 0, 1, 1))[:, :, ::2])), "behind channels of zeros, which"),
    (_Function(lambda x: F.pad(x.relu(), (1, 1))), r"pad\(\) in \w+"),
    (_Function(lambda x: x.relu()[:, ::2]), r"getitem\(\) in \w+"),
    (chain(nn.ReLU(), strided_shortcut()), r"add\(\) in Block \(2\), an addition of _2_conv2 and _2_shortcut, whose"),
    (_Function(lambda x: F.relu(torch.cat([x, x], 1))), r"cat\(\) in \w+, a concatenation that is not of layers'"),
    (_Function(lambda x: x.relu().to(torch.int).float()), r"to\(\) in \w+, which does not return one tensor of real"),
    (_Function(lambda x: F.relu(x.transpose(1, 2))), r"transpose\(\) in \w+"),
    (
        _Function(lambda x: F.relu(x) if x.sum() > 0 else x),
        r"run on images \[3, 8, 8\]; got RuntimeError in line \d+ of .*test_ann\.py.* on shapes only",
    ),
    (_Function(lambda x: x.relu().reshape(-1, 2, 128)), r"reshape\(\) in \w+, from \[4, 8, 8\] to \[2, 128\]"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_what_cannot_be_converted_is_refused_by_its_node(model, message):
    images = torch.rand(2, 3, 8, 8)
    model.eval()(images) if any(isinstance(module, nn.LazyLinear) for module in model.modules()) else None
    with pytest.raises(ConversionError, match=rf"(?s)convert_ann: model must .*{message}"):
        convert_ann(model, images)

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


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def groups_and_dilation() -> nn.Module:
    """Odd kernels too, a pool in front of its ReLU, and what functions and methods of tensors do."""
    return nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2, bias=False), nn.BatchNorm2d(8, affine=False)),
        Apply(lambda x: F.relu(F.max_pool2d(x, 2), inplace=True)),
        *(nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=4), Apply(lambda x: F.avg_pool2d(x.relu(), 2))),
        *(nn.Conv2d(8, 6, 2, stride=2), Apply(lambda x: F.adaptive_avg_pool2d(torch.clamp(x, 0, 2), 3))),
        *(Apply(lambda x: x.view(x.size(0), -1)), nn.Linear(6 * 3 * 3, 12)),
        *(Apply(lambda x: F.dropout(F.hardtanh(x, 0, 1), 0.5, training=False)), nn.Linear(12, 5)),
    )


class Join(nn.Module):
    """The sum of what two branches make of their input, or both, concatenated along the channels."""

    def __init__(self, one: nn.Module, other: nn.Module, cat: bool = False) -> None:
        super().__init__()
        self.one, self.other, self.cat = one, other, cat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.one(x), self.other(x)
        return torch.cat((one, other), dim=-3) if self.cat else one + other


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution and its batch norm."""
    sizes = inputs, outputs, kernel, stride, kernel // 2
    return nn.Sequential(nn.Conv2d(*sizes, bias=False), nn.BatchNorm2d(outputs))


def flat_skip(other: nn.Module) -> nn.Module:
    """An addition to flattened maps, which have several features for each channel."""
    stem = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*stem, Join(nn.Linear(64, 64), other), nn.ReLU(), nn.Linear(64, 5))


def fires() -> nn.Module:
    """A fire module as in SqueezeNet, a branch that pools, and a head on activations of two depths."""
    expand = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU6())
    fire = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), Join(*expand, cat=True))
    mix = nn.MaxPool2d(2), nn.Conv2d(15, 6, 3, padding=1, groups=3), nn.ReLU(), nn.MaxPool2d(2)
    both = Join(nn.Sequential(*mix), nn.MaxPool2d(4), cat=True)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 4)
    return nn.Sequential(conv(3, 6), nn.ReLU(), Join(fire, nn.MaxPool2d(3, 1, 1), cat=True), both, *head)


def block(inputs: int, channels: int, option: str, activation: nn.Module) -> nn.Module:
    """A residual block; where it begins a stage, option A slices and pads, option B has a 1×1 convolution."""
    stride, front = 1 if inputs == channels else 2, (channels - inputs) // 2
    shortcut = nn.Identity() if stride == 1 else Apply(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, front, front)))
    shortcut = conv(inputs, channels, 1, stride) if option == "B" else shortcut
    main = nn.Sequential(conv(inputs, channels, 3, stride), activation, conv(channels, channels))
    return nn.Sequential(Join(main, shortcut), activation)


def residual(option: str, activation: nn.Module | None = None, depthwise: bool = False) -> nn.Module:
    """As ResNets for CIFAR, smaller; a depthwise layer behind them."""
    activation = activation or nn.ReLU()
    blocks = (block(*sizes, option, activation) for sizes in ((4, 4), (4, 8), (8, 8), (8, 16)))
    more = [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()] if depthwise else []
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), activation, *blocks, *more, *head)


def inverted() -> nn.Module:
    """Linear bottlenecks as in MobileNet, added and read twice, pools of partial patches, means as logits."""
    wide = conv(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    return nn.Sequential(
        *(conv(3, 6), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), conv(6, 4, 1)),
        Join(nn.Identity(), nn.Sequential(*wide)),
        # A depthwise layer that is linear, and one behind a 1×1 convolution without bias, which may pad.
        *(nn.Conv2d(4, 4, 3, 2, groups=4, bias=False), nn.Conv2d(4, 6, 1), nn.ReLU()),
        *(nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(3, 5, 3, 1, 2, 2), nn.ReLU()),
        *(nn.MaxPool2d(2, ceil_mode=True), Apply(lambda x: x.mean((2, 3)))),
    )


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
        z = self.convs[1](y)
        z += x
        z = F.relu(z + y)
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


def words_for_padding() -> nn.Module:
    """Two layers that read the images, whose padding has words."""
    stems = nn.Conv2d(3, 4, 3, padding="same", dilation=2), nn.Conv2d(3, 5, (1, 5), padding="same")
    both = Join(*(nn.Sequential(stem, nn.ReLU()) for stem in stems), cat=True)
    return nn.Sequential(both, nn.Conv2d(9, 4, 3, padding="valid"), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


RESIDUAL = "4C3-(4C3-4C3)-(8C3s2-8C3)-(8C3-8C3)-(16C3s2-16C3)"
BUILDS = [
    (groups_and_dilation, (4, 24, 20), None),
    (fires, (3, 12, 12), None),
    (plain, (3, 4, 4), "20"),
    (words_for_padding, (3, 8, 8), None),
    (lambda: flat_skip(nn.Identity()), (3, 8, 8), None),
    (lambda: flat_skip(nn.Sequential(nn.Linear(64, 64), nn.ReLU())), (3, 8, 8), None),
    (lambda: residual("A"), (3, 12, 12), RESIDUAL + "-A"),
    (lambda: residual("A", depthwise=True), (3, 12, 12), RESIDUAL + "-16C3-A"),
    (lambda: residual("B"), (3, 13, 13), None),
    (inverted, (3, 12, 10), None),
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
    assert max(report.logits, *(layer.copied or 0 for layer in report.layers)) < 1e-4
    assert all(layer.clipped < 0.02 for layer in report.layers)


@pytest.mark.parametrize("option", ["A", "B"])
@torch.no_grad()
def test_residual_networks_clamp_as_their_ann(option):
    """In float64, with activations that reach their upper bound: each layer's, and the logits."""
    model = randomised(residual(option, clamp := nn.Hardtanh(0, 0.5))).double()
    images = torch.rand(8, 3, 12, 12, dtype=torch.float64)
    network, report = convert_ann(model, images)
    torch.testing.assert_close(network(images), model(images), atol=1e-6, rtol=1e-6)
    assert max(layer.copied for layer in report.layers) < 1e-6
    assert {layer.clip for layer in report.layers} == {0.5}
    seen = []
    clamp.register_forward_hook(lambda *args: seen.append(args[-1]))
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


@pytest.mark.parametrize(("build", "shape"), [(groups_and_dilation, (4, 24, 20)), (inverted, (3, 12, 10))])
@torch.no_grad()
def test_calibration_loses_less_and_the_package_takes_the_network(build, shape, tmp_path):
    model, images = randomised(build()), torch.rand(32, *shape)
    network, report = convert_ann(model, images, psp_persistence=0.5)
    graph = network_graph(network)
    assert [layer.name for layer in report.layers] == [stage.name for stage in graph.weighted[:-1]]
    hidden = report.layers[1:] if graph.encoder.kind == "analog" else report.layers
    assert all(layer.calibrated < layer.copied for layer in hidden)
    assert count(network, [images]).total()["synaptic_operations"] > 0
    assert report.to_dict()["layers"][0]["folded"] == ["batch norm"]
    assert simulate(network, [(images, model(images).argmax(1))], steps=16, weight_bits=8).accuracy > 0
    TTFSModel.from_network(network, builder="mine").save_pretrained(tmp_path)
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
    with pytest.raises(
        ConversionError, match="the only one that reads the images, with that encoder; got encoder analog"
    ):
        convert_ann(plain(), images[:, :, :4, :4], encoder="analog")


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *modules, nn.Flatten(), nn.LazyLinear(2))


def function(function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return chain(Apply(function))


REFUSED = [
    (chain(nn.GELU()), r"GELU \(1\)\. Use in its place Conv2d"),
    (chain(nn.Hardtanh()), r"Hardtanh \(1\), Hardtanh\(.*\) behind _0"),
    (chain(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()), r"Conv2d \(1\), behind _0 without an activation function"),
    (chain(nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU()), "and a pool or padding keeps both from becoming one"),
    (chain(nn.ReLU(), nn.BatchNorm2d(4)), r"BatchNorm2d \(2\), BatchNorm2d that is not right behind a Conv2d"),
    (chain(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()), "without running statistics"),
    (chain(nn.ReLU(), nn.MaxPool2d(2, dilation=2)), r"MaxPool2d \(2\), .*dilation=2.* from \[4, 8, 8\] to \[4, 3, 3\]"),
    (chain(nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)), r"MaxPool2d \(3\), behind an average pool"),
    (chain(nn.AvgPool2d(2), nn.ReLU()), "AvgPool2d in front of an activation function"),
    (chain(nn.ReLU(), nn.AvgPool2d(3, 1), nn.Conv2d(4, 4, 1), nn.ReLU()), "unless square windows divide the maps"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular"), nn.ReLU()), r"padding_mode='circular', padding=\(0"),
    pytest.param(
        *(nn.Sequential(nn.Conv2d(3, 4, 2, padding="same"), nn.ReLU()), r"padding_mode='zeros', padding='same'"),
        marks=pytest.mark.filterwarnings("ignore:Using padding"),  # PyTorch's own
    ),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "an output that no Linear layer computes"),
    (nn.Linear(1, 1).requires_grad_(False).apply(lambda own: own.bias.fill_(torch.nan)), "have finite weights; got 1"),
    (function(lambda x: F.dropout(x.relu())), r"dropout\(\) in Apply \(1\), which drops out in evaluation too"),
    (function(lambda x: x.clamp(min=0.1)), r"clamp\(\) in Apply \(1\)"),
    (function(lambda x: F.relu(x) * 2), r"mul\(\) in Apply \(1\)"),
    (function(lambda x: F.relu(x) + F.relu(x)), r"Conv2d \(0\), whose output is read more than once in front"),
    (function(lambda x: F.relu(x + 1)), r"add\(\) in Apply \(1\), an addition that is not of two outputs of one shape"),
    (function(lambda x: F.relu(F.max_pool2d(x, 2) + F.max_pool2d(x, 2))), "an addition behind a pool, in front of an"),
    (function(lambda x: (F.relu_(x[:, :, ::2]), F.relu(x))[1]), "without a change in place through a view"),
    (function(lambda x: F.relu(F.pad(x.relu(), (0, 0, 0, 0, 1, 1))[:, :, ::2])), "behind channels of zeros, which"),
    (function(lambda x: F.pad(x.relu(), (1, 1))), r"pad\(\) in Apply \(1\)"),
    (function(lambda x: x.relu()[:, ::2]), r"getitem\(\) in Apply \(1\)"),
    (
        # The shortcut's kernel has no place in the main path's, which has another stride.
        chain(nn.ReLU(), Join(nn.Sequential(conv(4, 8, 3, 2), nn.ReLU(), conv(8, 8)), nn.Conv2d(4, 8, 3, 2, 1))),
        r"add\(\) in Join \(2\), an addition of _2_one_2_0 and _2_other, whose",
    ),
    (function(lambda x: F.relu(torch.cat([x, x], 1))), r"cat\(\) in Apply \(1\), a concatenation that is not"),
    (function(lambda x: x.relu().to(torch.int).float()), r"to\(\) in Apply \(1\), which does not return one"),
    (
        function(lambda x: F.relu(x) if x.sum() > 0 else x),
        r"run on images \[3, 8, 8\]; got RuntimeError in line \d+ of .*test_ann\.py.* on shapes only",
    ),
    (function(lambda x: x.relu().reshape(-1, 2, 128)), r"reshape\(\) in Apply \(1\), from \[4, 8, 8\] to \[2, 128\]"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_what_cannot_be_converted_is_refused_by_its_node(model, message):
    images = torch.rand(2, 3, 8, 8)
    model.eval()(images) if any(isinstance(module, nn.LazyLinear) for module in model.modules()) else None
    with pytest.raises(ConversionError, match=rf"(?s)convert_ann: model must .*{message}"):
        convert_ann(model, images)

"""Any ANN as spikes: the same logits at σ = 0, less lost when calibrated, refused before work begins."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.convert import sources
from tests.convert.sources import randomised
from ttfs_triton import TTFSModel
from ttfs_triton.convert import ConversionError, convert_ann
from ttfs_triton.hardware import count, simulate
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


class Skipping(nn.Module):
    image_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6())
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.relu, self.readout = nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        out = self.second(self.first(x))
        out += x
        return self.readout(self.relu(out).mean((2, 3)))


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

    image_shape = (3, 12, 12)

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


def averaging(pool: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 5))


def plain() -> nn.Module:
    """Fully connected, of pixels as spike times."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))


BUILDS = [
    (GroupsAndDilation, (4, 24, 20), None),
    (Skipping, (3, 12, 12), None),
    (Fires, (3, 12, 12), None),
    (plain, (3, 4, 4), "20"),
    (FlatSkip, (3, 8, 8), None),
    (lambda: averaging(nn.MaxPool2d(4, 8, 1)), (1, 8, 8), "4C3-P4p1s8"),
    (lambda: averaging(nn.AvgPool2d(7)).append(nn.BatchNorm1d(5)), (1, 8, 8), "4C3"),  # not over whole maps
    (lambda: nn.Sequential(nn.AvgPool2d(2), *averaging(nn.AvgPool2d(4, 1))), (1, 8, 8), None),  # of images
    (sources.torchvision, (3, 64, 32), "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2-A-12-12"),
]


@pytest.mark.parametrize(("build", "shape", "specification"), BUILDS)
@torch.no_grad()
def test_converted_ann_computes_the_same_without_a_slope(build, shape, specification, device):
    model, images = randomised(build()).to(device).train(), torch.rand(12, *shape, device=device)
    network, report = convert_ann(model, images, psp_persistence=0.0, percentile=100)
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


@pytest.mark.parametrize("build", [GroupsAndDilation, Skipping, Fires])
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
    images = torch.rand(24, 3, 12, 12)
    losses = [convert_ann(randomised(Skipping()), images, percentile=p)[1].layers for p in (99.9, 90.0)]
    for first, (tight, loose) in zip((True, False, False), zip(*losses, strict=True), strict=True):
        assert (tight.clip == loose.clip == 6) if first else (tight.clip > loose.clip)
        assert first or loose.clipped > tight.clipped
    with pytest.raises(ConversionError, match=r"percentile must be in \(0, 100\]; got nan"):
        convert_ann(Skipping(), images, percentile=float("nan"))
    with pytest.raises(ConversionError, match="at least one image"):
        convert_ann(Skipping(), images[:0])


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
    with pytest.raises(ConversionError, match="encoder must be analog with mean and std; got latency"):
        convert_ann(model, images, encoder="latency", mean=mean)
    for wrong in ({"mean": mean}, {"mean": [0.5], "std": std}):  # gray images, which would be seen as three channels
        with pytest.raises(ConversionError, match=r"mean and std must have one entry per channel \(1\); got"):
            convert_ann(model, images[:, :1], **wrong)
    with pytest.raises(ConversionError, match="encoder must be latency unless the first layer is a plain"):
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


REFUSED = [
    (chain(nn.GELU()), r"got GELU \(1\)\. Replace it"),
    (chain(nn.Hardtanh()), r"Hardtanh \(1\), Hardtanh\(.*\) behind _0"),
    (chain(nn.Conv2d(4, 4, 3), nn.ReLU()), r"Conv2d \(1\), Conv2d behind _0 without an activation function"),
    (chain(nn.ReLU(), nn.BatchNorm2d(4)), r"BatchNorm2d \(2\), BatchNorm2d that is not right behind a Conv2d"),
    (chain(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()), "without running statistics"),
    (chain(nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True)), "no dilation, whole windows only"),
    (chain(nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)), "a max pool behind an average pool"),
    (chain(nn.AvgPool2d(2), nn.ReLU()), "AvgPool2d in front of an activation function"),
    (chain(nn.ReLU(), nn.AvgPool2d(3, 1), nn.Conv2d(4, 4, 1), nn.ReLU()), "whose square windows do not divide"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular"), nn.ReLU()), "padding_mode='circular'"),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "an output that its last layer does not compute"),
    (nn.Sequential(nn.Conv2d(3, 4, 3)), "an output that no Linear layer computes"),
    (nn.Linear(1, 1).requires_grad_(False).apply(lambda own: own.bias.fill_(torch.nan)), "have finite weights; got 1"),
    (_Function(lambda x: F.dropout(x.relu())), r"dropout \(dropout\), which drops out in evaluation too"),
    (_Function(lambda x: x.clamp(min=0.1)), r"got clamp \(clamp\)"),
    (_Function(lambda x: F.relu(x) * 2), r"got mul \(mul\)"),
    (_Function(lambda x: F.relu(x) + F.relu(x)), r"Conv2d \(conv\), whose output is read more than once in front"),
    (_Function(lambda x: F.relu(x + x)), r"add \(add\), an addition that is not of a layer's output and an earlier"),
    (FlatSkip(beside=True), r"add \(add\), activations of beside_0, which are not earlier than hidden's inputs"),
    (_Function(lambda x: F.relu(torch.cat([x, x], 1))), r"cat \(cat\), a concatenation that is not of layers' activ"),
    (_Function(lambda x: torch.cat([x.relu()] * 2, 2)), "of layers' activations, along their channels"),
    (_Function(lambda x: F.relu(x.transpose(1, 2))), r"got transpose \(transpose\)"),
    (_Function(lambda x: F.relu(x) if x.sum() > 0 else x), "be traceable by torch.fx .*; got _Function, symb"),
    (_Function(lambda x: x.relu().reshape(-1, 2, 128)), "reshape from"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_what_cannot_be_converted_is_refused_by_its_node(model, message):
    images = torch.rand(2, 3, 8, 8)
    model.eval()(images) if any(isinstance(module, nn.LazyLinear) for module in model.modules()) else None
    with pytest.raises(ConversionError, match=rf"(?s)convert_ann: model must .*{message}"):
        convert_ann(model, images)

"""One description of a network: what is traced and what is refused; `tests/energy` runs it as the module does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nn.common import randomised
from ttfs_triton.nn import DFTConv2d, DFTLinear, LatencyEncoder, NetworkError, Readout, decide, network_graph

SHAPE = (1, 8, 8)


def same(values):
    return values


class Written(nn.Module):
    """A network as people write them: functions between layers, a check of shapes, layers declared in any order."""

    def __init__(self, before=same, between=same, after=same):
        super().__init__()
        self.out = Readout(6, 3, at="first_spike")
        self.body = nn.ModuleDict({"fc": DFTLinear(64, 6), "conv": DFTConv2d(1, 4, 3, padding=1)})
        self.encoder = LatencyEncoder()
        self.before, self.between, self.after = before, between, after

    def forward(self, x):
        assert x.shape[1:] == SHAPE
        spikes = self.between(self.body["conv"](self.encoder(self.before(x))))
        spikes = F.max_pool2d(spikes, 2)
        spikes = spikes.reshape(x.size(0), -1)
        return self.after(self.out(F.dropout(self.body["fc"](spikes), 0.5, self.training)).float())


def test_functions_between_layers_are_modules_of_the_route():
    network = randomised(Written(), seed=0).train()
    network.out.eval()
    graph = network_graph(network, SHAPE)
    assert [(stage.name, stage.kind, stage.window, stage.shape) for stage in graph.stages] == [
        ("encoder", "latency", 0, SHAPE),
        ("body.conv", "spiking", 1, (4, 8, 8)),
        ("body.fc", "spiking", 2, (6,)),
        ("out", "readout", 3, (3,)),
    ]
    pool, flatten = graph["body.fc"].inputs[0].route
    assert (pool.kernel_size, pool.stride, type(flatten)) == ((2, 2), (2, 2), nn.Flatten)
    assert (network.training, network.out.training) == (True, False)  # left as they were
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
    lines = graph.describe()
    assert lines[2].startswith("body.fc [6]: DFTLinear(64, 6")
    assert "reads body.conv → EarliestSpikePool2d(kernel_size=(2, 2), stride=(2, 2)) → Flatten" in lines[2]


def test_nested_compiled_and_wrapped():
    block = nn.Sequential(nn.Identity(), DFTLinear(8, 4), nn.Dropout())
    network = nn.Sequential(LatencyEncoder(), nn.Sequential(nn.Flatten(), block), Readout(4, 2)).eval()
    compiled, images = torch.compile(network, backend="eager"), torch.rand(5, 2, 4)
    for model in (network, compiled):
        graph = network_graph(model, (2, 4))
        assert [stage.name for stage in graph.stages] == ["0", "1.1.1", "2"]
        assert graph["1.1.1"].inputs[0].deliver({"0": images}).shape == (5, 8)
    torch.no_grad()(compiled)(images)
    assert torch.equal(decide(compiled, images).prediction, decide(network, images).prediction)


class Named(DFTLinear):
    """A subclass with its base's forward is that layer."""


class Doubled(DFTLinear):
    def forward(self, x):
        return 2 * super().forward(x)


NO_SPIKES = r"consist of layers of ttfs_triton\.nn that hand on spikes; got "


@pytest.mark.parametrize(
    ("place", "function", "message"),
    [
        ("between", lambda h: h + h, NO_SPIKES + r"add\(\) in Written\. .*sum of spike times"),
        ("between", lambda h: h.mean(1, keepdim=True), r"got mean\(\) in .*mean of spike times"),
        ("between", lambda h: h.relu(), r"got relu\(\) in .*Leave it out"),
        ("between", lambda h: 2 * h, r"got r?mul\(\) in .*cannot be scaled"),
        ("between", lambda h: torch.cat([h, h]), r"got cat\(\) in .*Concatenate spikes of layers"),
        ("between", lambda h: F.max_pool2d(h, 3, 1, 1, 2), r"got max_pool2d\(\) in .*no dilation"),
        ("between", lambda h: F.interpolate(h, scale_factor=1.75), r"got interpolate\(\) .*SpikeUpsample2d: nearest"),
        ("between", lambda h: F.dropout(h), r"got dropout\(\) in .*Use nn.Dropout, or pass training"),
        ("between", lambda h: h[: len(h) if h.max() > 0 else 1], r"got max\(\) in .*No layer of ttfs_triton"),
        ("between", lambda h: {}["x"], r"run on images \[1, 8, 8\]; got KeyError in line \d+ of .*test_graph\.py"),
        ("before", lambda x: x - 0.5, r"got \w+\(\) in Written\. Pass images as they are"),
        ("before", lambda x: x.mul_(2), r"got \w+\(\) in Written\. Pass images as they are"),
        ("after", lambda x: x / 10, "Hand on the readout's output"),
        ("after", lambda x: (x, x), r"another output\. .* hand on its output"),
    ],
)
def test_other_functions_are_refused_by_name(place, function, message):
    with pytest.raises(NetworkError, match=f"network_graph: model must .*{message}"):
        network_graph(Written(**{place: function}), SHAPE)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"begin with its only encoder; got no layers of ttfs_triton\.nn\. Put LatencyEncoder"),
        ([DFTLinear(4, 4), Readout(4, 2)], r"begin .*; got DFTLinear \(0\), which reads images\. Put Latency"),
        ([LatencyEncoder(), LatencyEncoder(), Readout(4, 2)], r"got LatencyEncoder \(1\), which reads spikes"),
        ([LatencyEncoder(), Named(4, 4)], r"end with its only readout; got .*Named\. Append a Readout"),
        ([LatencyEncoder(), Readout(4, 4), Readout(4, 2)], r"end with .*Readout \(2\) behind"),
        ([LatencyEncoder(), DFTLinear(4, 3), Readout(4, 2)], r"fit each other; .*be 4 features; got \(3,"),
        ([LatencyEncoder(), *[DFTLinear(4, 4)] * 2, Readout(4, 2)], r"got 1, which runs twice\. Use a"),
        ([LatencyEncoder(), Doubled(4, 4), Readout(4, 2)], r"got \w+\(\) in Doubled \(1\)"),
        ([LatencyEncoder(), nn.BatchNorm1d(4), Readout(4, 2)], r"got BatchNorm1d \(1\)\. Use batch_norm=True"),
        ([LatencyEncoder(), nn.Linear(4, 4), Readout(4, 2)], r"got Linear \(1\)\. Use DFTLinear"),
    ],
)
def test_wrong_structure_is_refused(layers, message):
    with pytest.raises(NetworkError, match=f"network_graph: .* must .*{message}"):
        network_graph(nn.Sequential(*layers), (4,))


def test_image_shape_is_the_network_s_or_given():
    network = nn.Sequential(LatencyEncoder(), Readout(4, 2))
    for shape in (None, (0,)):
        with pytest.raises(ValueError, match=r"positive sizes, .*; got (None|.0,.)\. Give it, or give Sequential"):
            network_graph(network, shape)
    network.image_shape = (4,)
    assert network_graph(network).image_shape == (4,)

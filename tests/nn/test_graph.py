"""One description of a network: what is traced and what is refused; `tests/energy` runs it as the module does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nn.common import randomised
from ttfs_triton.nn import (
    DFTConv2d,
    DFTLinear,
    LatencyEncoder,
    NetworkError,
    Readout,
    cnn1,
    decide,
    network_graph,
)

SHAPE = (1, 8, 8)


class Own(nn.Module):
    """A network as people write them: functions between layers, a check of shapes, layers declared in any order."""

    def __init__(self):
        super().__init__()
        self.out = Readout(6, 3, at="first_spike")
        self.body = nn.ModuleDict({"fc": DFTLinear(64, 6), "conv": DFTConv2d(1, 4, 3, padding=1)})
        self.encoder = LatencyEncoder()

    def between(self, spikes):
        return spikes

    def forward(self, x):
        assert x.shape[1:] == SHAPE
        spikes = self.between(self.body["conv"](self.encoder(x)))
        spikes = F.max_pool2d(spikes, 2)
        spikes = spikes.reshape(x.size(0), -1)
        return self.out(F.dropout(self.body["fc"](spikes), 0.5, self.training)).float()


def own(between=None):
    network = randomised(Own(), seed=0)
    if between is not None:
        network.between = between
    return network


def test_graph_of_cnn1():
    stages = network_graph(cnn1(width=0.25)).stages
    assert [(stage.name, stage.kind, stage.window, stage.shape) for stage in stages] == [
        ("encoder", "latency", 0, (1, 28, 28)),
        ("conv1", "spiking", 1, (4, 28, 28)),
        ("conv2", "spiking", 2, (8, 10, 10)),
        ("fc1", "spiking", 3, (32,)),
        ("readout", "readout", 4, (10,)),
    ]
    assert [stage.inputs[0].source for stage in stages] == [None, "encoder", "conv1", "conv2", "fc1"]


def test_functions_between_layers_are_modules_of_the_route():
    network = own().train()
    network.out.eval()
    graph = network_graph(network, SHAPE)
    assert [stage.name for stage in graph.stages] == ["encoder", "body.conv", "body.fc", "out"]
    pool, flatten = graph["body.fc"].inputs[0].route
    assert (pool.kernel_size, pool.stride, type(flatten)) == ((2, 2), (2, 2), nn.Flatten)
    assert graph.readout.at == "first_spike"
    assert (network.training, network.out.training) == (True, False)  # left as they were
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_nested_compiled_and_wrapped():
    block = nn.Sequential(nn.Identity(), DFTLinear(8, 4), nn.Dropout())
    network = nn.Sequential(LatencyEncoder(), nn.Sequential(nn.Flatten(), block), Readout(4, 2)).eval()
    compiled, images = torch.compile(network, backend="eager"), torch.rand(5, 2, 4)
    for each in (network, compiled):
        graph = network_graph(each, (2, 4))
        assert [stage.name for stage in graph.stages] == ["0", "1.1.1", "2"]
        assert graph["1.1.1"].inputs[0].deliver({"0": images}).shape == (5, 8)
    torch.no_grad()(compiled)(images)
    assert torch.equal(decide(compiled, images).prediction, decide(network, images).prediction)


def test_subclass_with_its_forward_is_a_layer_and_another_forward_is_not():
    class Named(DFTLinear):
        pass

    class Doubled(DFTLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert len(network_graph(nn.Sequential(LatencyEncoder(), Named(4, 4), Readout(4, 2)), (4,)).stages) == 3
    with pytest.raises(NetworkError, match=r"got \w+\(\) in Doubled \(1\)"):
        network_graph(nn.Sequential(LatencyEncoder(), Doubled(4, 4), Readout(4, 2)), (4,))


@pytest.mark.parametrize(
    ("between", "what", "remedy"),
    [
        (lambda h: h + h, "add", "sum of spike times"),
        (lambda h: h.mean(1, keepdim=True), "mean", "mean of spike times"),
        (lambda h: h.relu(), "relu", "Leave it out"),
        (lambda h: 2 * h, "r?mul", "cannot be scaled"),
        (lambda h: torch.cat([h, h]), "cat", "Concatenate spikes of layers"),
        (lambda h: F.max_pool2d(h, 3, 1, 1, 2), "max_pool2d", "no dilation"),
        (lambda h: F.dropout(h), "dropout", "Use nn.Dropout, or pass training"),
        (lambda h: h[: len(h) if h.max() > 0 else 1], "max", "No layer of ttfs_triton"),
    ],
)
def test_function_between_layers_is_refused_by_name(between, what, remedy):
    message = (
        rf"model must consist of layers of ttfs_triton\.nn that hand on spikes; got {what}\(\) in Own\. .*{remedy}"
    )
    with pytest.raises(NetworkError, match=message):
        network_graph(own(between), SHAPE)


def test_error_in_a_forward_names_its_line():
    with pytest.raises(NetworkError, match=r"run on images \[1, 8, 8\]; got KeyError in line \d+ of .*test_graph\.py"):
        network_graph(own(lambda h: {}["x"]), SHAPE)


@pytest.mark.parametrize("change", [lambda x: x - 0.5, lambda x: x / 0.25, lambda x: x.mul_(2)])
def test_images_are_normalised_by_the_encoder(change):
    class Normalising(Own):
        def forward(self, x):
            return super().forward(change(x))

    with pytest.raises(NetworkError, match=r"got \w+\(\) in Normalising\. Pass images as they are"):
        network_graph(Normalising(), SHAPE)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"begin with its only encoder; got no layers of ttfs_triton\.nn\. Put LatencyEncoder"),
        ([DFTLinear(4, 4), Readout(4, 2)], r"begin .*; got DFTLinear \(0\), which reads images\. Put Latency"),
        ([LatencyEncoder(), LatencyEncoder(), Readout(4, 2)], r"got LatencyEncoder \(1\), which reads spikes"),
        ([LatencyEncoder(), DFTLinear(4, 4)], r"end with its only readout; got .*DFTLinear\. Append a Readout"),
        ([LatencyEncoder(), Readout(4, 4), Readout(4, 2)], r"end with .*Readout \(2\) behind"),
        ([LatencyEncoder(), DFTLinear(4, 3), Readout(4, 2)], r"fit each other; .*be 4 features; got \(3,"),
        ([LatencyEncoder(), *[DFTLinear(4, 4)] * 2, Readout(4, 2)], r"got 1, which runs twice\. Use a"),
        ([LatencyEncoder(), nn.BatchNorm1d(4), Readout(4, 2)], r"got BatchNorm1d \(1\)\. Use batch_norm=True"),
        ([LatencyEncoder(), nn.Linear(4, 4), Readout(4, 2)], r"got Linear \(1\)\. Use DFTLinear"),
        ([LatencyEncoder(), nn.Conv2d(4, 4, 1), Readout(4, 2)], r"got Conv2d \(1\)\. Use DFTConv2d"),
    ],
)
def test_wrong_structure_is_refused(layers, message):
    with pytest.raises(NetworkError, match=f"network_graph: .* must .*{message}"):
        network_graph(nn.Sequential(*layers), (4,))


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x / 10, "Hand on the readout's output"), (lambda x: (x, x), r"another output\. .* hand on its output")],
)
def test_another_output_is_refused(change, message):
    class Changed(Own):
        def forward(self, x):
            return change(super().forward(x))

    with pytest.raises(NetworkError, match=message):
        network_graph(Changed(), SHAPE)


def test_image_shape_is_the_network_s_or_given():
    network = nn.Sequential(LatencyEncoder(), Readout(4, 2))
    for shape in (None, (0,)):
        with pytest.raises(
            ValueError, match=r"must be positive sizes, .*; got (None|.0,.)\. Give it, or give Sequential"
        ):
            network_graph(network, shape)
    network.image_shape = (4,)
    assert network_graph(network).image_shape == (4,)


def test_description_tells_networks_apart():
    lines = network_graph(own(), SHAPE).describe()
    assert lines[2].startswith("body.fc [6]: DFTLinear(64, 6")
    assert "reads body.conv → EarliestSpikePool2d(kernel_size=(2, 2), stride=(2, 2)) → Flatten" in lines[2]
    other = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 6), Readout(6, 3))
    assert network_graph(other, SHAPE).describe() != lines

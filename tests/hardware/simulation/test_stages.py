import pytest
import torch
from torch import nn

from tests.nn.common import randomised
from ttfs_triton.hardware.simulation.stages import network_stages
from ttfs_triton.nn import (
    AnalogEncoder,
    ANNConv2d,
    ANNLinear,
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    FirstSpikeReadout,
    LatencyEncoder,
    PotentialReadout,
    cnn1,
    vgg11,
)


def test_stages_of_cnn1():
    stages = network_stages(cnn1(width=0.25))
    assert [(stage.name, stage.kind) for stage in stages] == [
        ("encoder", "latency"),
        ("conv1", "spiking"),
        ("conv2", "spiking"),
        ("fc1", "spiking"),
        ("readout", "readout"),
    ]
    assert [[type(module) for module in stage.route] for stage in stages] == [
        [],
        [],
        [EarliestSpikePool2d],
        [EarliestSpikePool2d, nn.Flatten],
        [],
    ]


def test_stages_of_vgg11_begin_with_the_analog_encoder():
    stages = network_stages(vgg11(width=1 / 32))
    assert (stages[0].name, stages[0].kind, len(stages)) == ("conv1", "analog", 11)


def test_stages_of_nested_sequential_skip_what_does_nothing():
    block = nn.Sequential(nn.Identity(), DFTLinear(8, 4), nn.Dropout())
    network = nn.Sequential(LatencyEncoder(), nn.Sequential(nn.Flatten(), block), FirstSpikeReadout(4, 2))
    stages = network_stages(network)
    assert [stage.name for stage in stages] == ["0", "1.1.1", "2"]
    assert stages[1].deliver(torch.zeros(3, 2, 4)).shape == (3, 8)
    assert [type(module) for module in stages[1].route] == [nn.Flatten]


def test_stages_of_a_compiled_network():
    assert [stage.name for stage in network_stages(torch.compile(cnn1(width=0.25), backend="eager"))][1] == "conv1"


def test_layer_used_twice_is_two_stages():
    layer = DFTLinear(4, 4)
    assert len(network_stages(nn.Sequential(LatencyEncoder(), layer, layer, PotentialReadout(4, 2)))) == 4


def test_synapses_fold_batch_norm_and_standardisation():
    layer = randomised(AnalogEncoder(2, 3, 3, padding=1, mean=[0.1, 0.2], std=[0.5, 2.0], batch_norm=True), seed=0)
    layer.batch_norm.running_mean.uniform_(-1, 1)
    layer.batch_norm.running_var.uniform_(0.5, 2)
    weight, bias = network_stages(nn.Sequential(layer, PotentialReadout(4, 2)))[0].synapses()
    x = torch.rand(4, 2, 5, 5)
    y = nn.functional.conv2d(((x - layer.mean) / layer.std).double(), weight, bias, padding=1).clamp(0, 1)
    torch.testing.assert_close(y.float(), layer.eval()(x), rtol=1e-5, atol=1e-5)
    weight, bias = network_stages(nn.Sequential(LatencyEncoder(), PotentialReadout(4, 2, bias=False)))[1].synapses()
    assert (weight.dtype, weight.requires_grad, bias) == (torch.float64, False, None)


def test_weighted_rejects_a_latency_encoder():
    with pytest.raises(TypeError, match=r"Stage\.weighted: stage must have synapses; got encoder, a latency encoder"):
        _ = network_stages(cnn1(width=0.25))[0].weighted


@pytest.mark.parametrize("layer", [ANNConv2d(1, 1, 3), ANNLinear(4, 4)], ids=["conv2d", "linear"])
def test_ann_layer_is_named(layer):
    network = nn.Sequential(LatencyEncoder(), nn.Sequential(layer), PotentialReadout(4, 2))
    what = rf"spiking layers; got {type(layer).__name__} \(1\.0\), which never fires\. Use DFTConv2d or DFTLinear"
    with pytest.raises(NotImplementedError, match=what):
        network_stages(network)
    with pytest.raises(NotImplementedError, match=r"got ANNConv2d \(conv1\)"):
        network_stages(cnn1(width=0.25, analog=True))


@pytest.mark.parametrize("module", [nn.AvgPool2d(2), nn.ReLU(), nn.Linear(4, 4)])
def test_unknown_module_is_named(module):
    network = nn.Sequential(LatencyEncoder(), module, PotentialReadout(4, 2))
    with pytest.raises(NotImplementedError, match=rf"layers of ttfs_triton\.nn .*; got {type(module).__name__} \(1\)"):
        network_stages(network)
    with pytest.raises(NotImplementedError, match=r"got ReLU\.$"):
        network_stages(nn.ReLU())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"begin with its only encoder; got no layers\. Put LatencyEncoder"),
        ([DFTLinear(4, 4), PotentialReadout(4, 2)], "begin with its only encoder; got DFTLinear, PotentialReadout"),
        ([LatencyEncoder(), LatencyEncoder(), PotentialReadout(4, 2)], "begin with its only encoder; got Latency"),
        ([LatencyEncoder(), DFTConv2d(1, 1, 3)], r"end with its only readout; got .*DFTConv2d\. Append Potential"),
        ([LatencyEncoder(), PotentialReadout(4, 4), PotentialReadout(4, 2)], "end with its only readout"),
        ([LatencyEncoder(), PotentialReadout(4, 2), nn.Flatten()], "end with its only readout; got .*Readout, Flatten"),
    ],
)
def test_wrong_order_is_rejected(layers, message):
    with pytest.raises(ValueError, match=f"network_stages: model must {message}"):
        network_stages(nn.Sequential(*layers))

"""NIR graphs: their clock, files, and what snnTorch makes of them."""

import io
import json
from collections import OrderedDict

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.export.common import images_for, small_network
from tests.nn.common import randomised
from ttfs_triton.export import Clock, compare_nir, compare_onnx, decide, input_frames, to_nir, to_onnx
from ttfs_triton.export.compare import import_into_snntorch
from ttfs_triton.export.nir_clock import FirstSpikes, sampling
from ttfs_triton.export.shared import synapse_arrays
from ttfs_triton.nn import AnalogEncoder, DFTConv2d, EarliestSpikePool2d, LatencyEncoder, Neuron, Readout, SignedEncoder

nir = pytest.importorskip("nir", reason="exporting to NIR needs nir")
pytest.importorskip("snntorch", reason="running NIR needs snnTorch")
WIDE = {"dilation": (2, 1), "stride": (2, 1), "padding": 1}


def read_back(graph):
    file = io.BytesIO()
    nir.write(file, graph)
    return nir.read(io.BytesIO(file.getvalue()))


def test_metadata_say_what_nir_cannot():
    metadata = read_back(to_nir(small_network(), steps=16)).metadata
    assert (Clock.from_metadata(metadata), metadata["window_s"]) == (Clock(16, 4, (2, 9, 8), False), "0.0016")
    assert "border k = 0 to 4 spikes in step k S, after k = 1 to 4 in step k S + 1" in metadata["input"]
    assert "from step 64 to 79" in metadata["output"]
    analog = to_nir(small_network(encoder="analog", readout="first_spike")).metadata
    assert "(pixel - mean) / std in step 0" in analog["input"]
    for words, told in (
        (("Windows", "steps", "latency encoder", "Logits"), metadata),
        (("Normalisation", "minus the spike times"), analog),
    ):
        assert all(word in " ".join(json.loads(told["not_expressed"])) for word in words)


def first_spikes(graph, network, images, name):
    """First spikes of a node in snnTorch."""
    module, first, clock = import_into_snntorch(graph), FirstSpikes(), Clock.from_metadata(graph.metadata)
    module.get_submodule(name).register_forward_hook(lambda _module, _inputs, spikes: first.update(spikes))
    with torch.no_grad():
        decide((module(frame)[0] for frame in input_frames(images, network.features[0], clock)), clock)
    return first, clock


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0])
def test_neurons_fire_in_the_step_that_the_discrete_rule_says(sigma):
    network, steps = small_network(neuron=Neuron(sigma)), 20
    images = images_for(network, samples=8)
    first, clock = first_spikes(to_nir(network, steps=steps), network, images, "conv1_neuron")
    inputs = ((1 - images.double()) * steps).round().clamp_max(steps - 1)
    activation = torch.where(images > 0, 1 - inputs / steps, 0.0)
    weight, bias = (torch.from_numpy(array).double() for array in synapse_arrays(network.features.conv1))
    A = torch.nn.functional.conv2d(activation, weight, bias, padding=1)
    W = sigma * torch.nn.functional.conv2d((activation > 0).double(), weight, padding=1)
    step = torch.arange(steps).double().view(-1, 1, 1, 1, 1)
    excess = A + W * (step + 1) / steps + (step + 0.5) / steps - 1
    expected = torch.where((excess > 0).any(0), (excess > 0).double().argmax(0).double(), torch.inf)
    clear = excess.abs().amin(0) > 1e-4  # float32 decides the rest
    assert clear.float().mean() > 0.99
    assert 0.1 < torch.isfinite(expected).float().mean() < 0.9
    found = (first.times(clock, 1) * steps).double()
    torch.testing.assert_close(found[clear], expected[clear], rtol=0, atol=1e-3)
    assert first.count.max() == 1


@pytest.mark.parametrize("waits", [1, 2])
def test_delayed_spikes_come_whole_windows_later(waits):
    """Each exactly once, to the step."""
    layers = "-".join(["3C3"] * waits)
    network, steps = small_network(0, f"({layers}-4C3)-5", neuron=Neuron(0.5)), 12
    images = images_for(network, samples=6)
    graph = to_nir(network, steps=steps)
    first, clock = first_spikes(graph, network, images, f"conv{waits + 1}_skip_delay{waits}_neuron")
    inputs = ((1 - images) * steps).round().clamp_max(steps - 1) / steps
    expected = torch.where(images > 0, inputs, torch.inf)
    torch.testing.assert_close(first.times(clock, waits), expected, rtol=0, atol=1e-6)
    assert first.count.max() == 1


def compared_by_steps(network, images):
    """Comparisons of files with 8 and with 64 steps, of which the second is nearer to the closed form."""
    shape = images.shape[1:]
    coarse, fine = (
        compare_nir(read_back(to_nir(network, image_shape=shape, steps=steps)), network, images) for steps in (8, 64)
    )
    assert fine.times[0].mean < 0.25 * coarse.times[0].mean  # an eighth, had all spikes clear crossings
    for layer in fine.times:  # deeper layers jump where an input comes too late to count
        assert (layer.repeated, layer.spikes > 10, layer.mean < 0.03) == (0, True, True), layer
    assert fine.same_decisions + fine.ties >= 7
    return fine


@pytest.mark.parametrize(
    ("sigma", "config"),
    [
        (0.0, {"readout": "first_spike"}),
        (1.0, {"specification": "4C3-P2-6", "bias": False}),
        (0.25, {"specification": "3C3-(3C3-4C3s2)-6", "image_size": (8, 8)}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (0.25, {"encoder": "analog", "mean": (0.4, 0.5), "std": (0.3, 0.3)}),
                (0.25, {"specification": "P2-6-5", "readout": "potential_end"}),
                (1.0, {"specification": "3C3-P3p1s2-8"}),
                (1.0, {"specification": "P2-(3C3-3C3-4C3)-A-8-(8-9)", "image_size": (8, 8)}),
                (0.25, {"specification": "2C3-A2-3C3-8", "image_size": (8, 8), "encoder": "analog"}),
            ]
        ),
    ],
)
def test_spike_times_approach_the_closed_form(sigma, config):
    network = small_network(neuron=Neuron(sigma), scale=0.6, **config)
    fine = compared_by_steps(network, images_for(network, samples=8))
    assert fine.times[0].one_sided < 0.03
    assert fine.times[-1].largest < 1.5 / 64
    assert max(layer.one_sided for layer in fine.times) < 0.15
    assert fine.program.startswith("snnTorch")


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((2, 12, 10), lambda n: [DFTConv2d(2, 4, 3, padding=1, groups=2, neuron=n), EarliestSpikePool2d(3, 2, 1)]),
        ((1, 10, 9), lambda n: [DFTConv2d(1, 4, 3, padding=1, neuron=n), DFTConv2d(4, 4, 3, groups=4, **WIDE)]),
        ((3, 9, 8), lambda n: [AnalogEncoder(3, 6, 3, groups=3, padding=1), DFTConv2d(6, 4, 4, neuron=n)]),
    ],
    ids=["groups and pools", "depthwise and dilated", "analog"],
)
def test_grouped_kernels_are_written_dense(shape, layers):
    """Importers know no groups, and leave out the padding of pools."""
    found = layers(Neuron(0.25))
    encoder = [] if isinstance(found[0], AnalogEncoder) else [LatencyEncoder()]
    body = torch.nn.Sequential(*encoder, *found, torch.nn.Flatten())
    size = body(torch.rand(1, *shape)).shape[1]
    network = randomised(torch.nn.Sequential(*body, Readout(size, 3)), 0, 0.6).eval()
    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    compared_by_steps(network, images)
    assert compare_onnx(to_onnx(network, image_shape=shape).SerializeToString(), network, images).logits < 1e-5


def test_layers_may_have_the_names_of_other_nodes_but_not_of_each_other():
    names = ("encoder", "input", "threshold", "flatten", "output")
    layers = LatencyEncoder(), DFTConv2d(2, 3, 3), DFTConv2d(3, 3, 3), torch.nn.Flatten(), Readout(60, 3)
    network = torch.nn.Sequential(OrderedDict(zip(names, layers, strict=True))).eval()
    assert to_onnx(network, image_shape=(2, 9, 8)).graph.node
    assert {"layeroutput_neuron", "layerinput_neuron"} <= to_nir(network, image_shape=(2, 9, 8)).nodes.keys()
    network = torch.nn.Sequential(OrderedDict(zip(("encoder", "a-b", "a_b", "flatten", "output"), layers, strict=True)))
    with pytest.raises(ValueError, match=r"to_nir: layer names must differ .*; got two for the node a_b\. Rename"):
        to_nir(network, image_shape=(2, 9, 8))


def test_images_without_an_output_spike_are_decided_alike():
    network = small_network(specification="6")
    network.readout.bias.data.fill_(-100)
    found = compare_nir(to_nir(network, steps=8), network, images_for(network))
    assert (found.silent, found.different, found.predictions.tolist()) == (4, 0, [-1] * 4)


@pytest.mark.parametrize(
    ("layers", "features", "message"),
    [
        ((LatencyEncoder(), EarliestSpikePool2d(2, ceil_mode=True)), 40, "pools must read whole, square patches; got"),
        ((LatencyEncoder(), EarliestSpikePool2d((2, 1))), 64, "pools must read whole, square patches; got"),
        ((EarliestSpikePool2d(2), AnalogEncoder(2, 3, 3)), 12, "an analog encoder must read the image itself; got a p"),
        ((SignedEncoder(2, 3, 3),), 126, "encoder must be latency or analog; got signed"),
        ((LatencyEncoder(), DFTConv2d(2, 4, 3, padding=3)), 624, "maps must be sampled from the image"),
        ((LatencyEncoder(), DFTConv2d(2, 4, (3, 2))), 196, r"kernels must be square; got \(3, 2\)\. Use to_onnx"),
    ],
)
def test_refuses_what_it_cannot_say(layers, features, message):
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), Readout(features, 3))
    with pytest.raises(NotImplementedError, match=message):
        to_nir(network, image_shape=(2, 9, 8))


def test_needs_maps_and_a_number_of_steps_within_bounds():
    flat = torch.nn.Sequential(LatencyEncoder(), Readout(4, 2))
    with pytest.raises(NotImplementedError, match=r"images must be \[channels, height, width\] .*; got \(4,\)"):
        to_nir(flat, image_shape=(4,))
    for steps in (1, 4097):
        with pytest.raises(ValueError, match=f"to_nir: steps must be 2 to 4096; got {steps}"):
            to_nir(small_network(), steps=steps)


# ---- the clock


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    pools=st.integers(0, 2),
)
def test_sampling_reaches_maps_behind_convolutions_and_pools(size, kernel, stride, pools):
    wanted = tuple(((length - kernel) // stride + 1) // 2**pools for length in size)
    assume(min(wanted) >= 1)
    try:
        side, stride, tap = sampling(size, wanted)
    except NotImplementedError:
        assert size[0] != size[1], "square maps are always reached"
        return
    taps = torch.zeros(1, 1, side, side)
    taps[0, 0, *tap] = 1
    maps = torch.nn.functional.conv2d(torch.ones(1, 1, *size), taps, stride=stride, padding=tap)
    assert torch.equal(maps, torch.ones(1, 1, *wanted))


CLOCK = Clock(4, 2, (2, 9, 8), False)


def test_earliest_spike_decides():
    output = torch.zeros(CLOCK.total_steps, 3, 3)
    output[9, 0, 2] = output[10, 0, 0] = 1  # class 2 first
    output[8, 1, 1] = output[8, 1, 2] = 1  # a tie
    decision = decide(output, CLOCK)
    assert decision.prediction.tolist() == [2, 1, -1]
    assert (decision.tie.tolist(), decision.no_spike.tolist()) == ([False, True, False], [False, False, True])
    assert decision.spike_times[0].tolist() == [0.5, torch.inf, 0.25]
    assert decision.spike_times[2].isinf().all()


def test_other_graphs_images_of_another_shape_and_incomplete_runs_are_refused():
    with pytest.raises(ValueError, match='metadata must hold "clock"'):
        Clock.from_metadata({"network": "{}"})
    with pytest.raises(ValueError, match=r"images must have shape \[N, 2, 9, 8\]; got \(1, 1, 9, 8\)"):
        next(input_frames(torch.zeros(1, 1, 9, 8), LatencyEncoder(), CLOCK))
    with pytest.raises(ValueError, match="all 12 steps of a run must have passed; got 11"):
        decide(torch.zeros(11, 1, 3), CLOCK)

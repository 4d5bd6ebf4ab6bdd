"""Exported C, compiled and run, beside the simulator: the same classes, spike times and operations, to the bit."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from tests.nn.common import randomised
from ttfs_triton.chip import simulate
from ttfs_triton.data.pixels import to_float
from ttfs_triton.evaluate.load import load_network
from ttfs_triton.export import to_c
from ttfs_triton.export.compare import compare_c, compile_c, raw_bytes
from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear, Grid, LatencyEncoder, Neuron, Readout, SignedEncoder
from ttfs_triton.nn.prepare import put_on_grid
from ttfs_triton.nn.weighted import skip_step

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="exported C is compiled by gcc")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")
SANITISED = ("-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
PROGRAM = """
#include "net.c"
#include <stdio.h>
int main(void)
{
    static uint8_t image[NET_IMAGE_BYTES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        int class = net_classify(image);
        printf("%d %d %llu", class, net_first_spike, (unsigned long long)net_operations);
        for (int c = 0; c < NET_CLASSES; c++)
            printf(" %d", net_spike_times[c]);
        puts("");
    }
    return 0;
}
"""


def assert_equal(
    network: nn.Module, pixels: Tensor, folder: Path, *flags: str, compiler: str = "gcc", **grid: Any
) -> None:
    """Compare compiled C with the simulator on images [N, C, height, width]."""
    (folder / "net.c").write_text(to_c(network, **grid))
    (folder / "program.c").write_text(PROGRAM)
    command = [compiler, *STRICT, *(flags or SANITISED), str(folder / "program.c"), "-o", str(folder / "program")]
    subprocess.run(command, check=True)
    done = subprocess.run([folder / "program"], input=raw_bytes(pixels), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = torch.tensor([[int(word) for word in line.split()] for line in done.stdout.splitlines()])
    found = simulate(network, to_float(pixels).split(100), keep_spike_times=True, **grid)
    assert found.spike_steps is not None
    assert torch.equal(rows[:, 3:], list(found.spike_steps.values())[-1].long())
    assert torch.equal(rows[:, 0], found.predictions)
    assert torch.equal(rows[:, 1], found.first_spike_predictions)
    assert rows[:, 2].sum() == sum(layer.synaptic_operations for layer in found.counts.layers)


def noise(samples: int, *shape: int, seed: int = 0) -> Tensor:
    """Random pixels, many of them black or white."""
    drawn = torch.randint(-80, 336, (samples, *shape), generator=torch.Generator().manual_seed(seed))
    return drawn.clamp(0, 255).to(torch.uint8)


def one_of(*values: object) -> st.SearchStrategy:
    return st.sampled_from(values)


CHOICES = {
    "sigma": one_of(0.0, 0.25, 0.3, 1.0),
    "encoder": one_of(LatencyEncoder, AnalogEncoder, SignedEncoder),
    "patches": one_of((3, 1, 1), ((2, 3), (1, 2), (0, 1)), (1, 1, 0), (2, 1, 1, (2, 1)), ((1, 2), 1, 1, (1, 3), 2)),
    "mean": one_of(((0.0, 0.0), (1.0, 1.0)), ((0.48, 0.3), (0.25, 0.4))),
    "geometry": one_of(
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1)},
        {"kernel_size": 2, "padding": 2, "dilation": 2},
        {"kernel_size": (1, 2), "padding": (2, 0), "dilation": (1, 2), "groups": 2},
    ),
    "pools": one_of((), ((2, 2, 0),), ((3, 1, 1),), ((2, 1, 1), (3, 2, 1))),
    **dict.fromkeys(("skips", "joins", "averages", "joins features"), st.booleans()),
    "readout": one_of(
        {"at": "potential_start"},
        {"at": "potential_end"},
        {"at": "first_spike", "threshold": 4.0, "initial_potential": 1.0},
    ),
}


class Everything(nn.Module):
    """Every kind of layer and wire, as chosen from `CHOICES`; all layers are made on their first inputs."""

    image_shape = (2, 10, 12)

    def __init__(self, chosen: dict[str, Any]) -> None:
        super().__init__()
        self.chosen, self.made = chosen, nn.ModuleDict()
        self.eval()(torch.zeros(1, *self.image_shape))

    def layer(self, name: str, kind, *sizes, **options) -> nn.Module:
        if name not in self.made:
            neuron = {} if kind is AnalogEncoder else {"neuron": Neuron(self.chosen["sigma"])}
            self.made[name] = kind(*sizes, weight_standardisation=False, **neuron, **options).eval()
        return self.made[name]

    def encoded(self, x: Tensor) -> Tensor:
        kind, (mean, std) = self.chosen["encoder"], self.chosen["mean"]
        if kind is LatencyEncoder:
            if "encoder" not in self.made:
                self.made["encoder"] = LatencyEncoder()
            return self.made["encoder"](x)
        return self.layer("encoder", kind, 2, 4, *self.chosen["patches"], mean=mean, std=std)(x)

    def forward(self, x: Tensor) -> Tensor:
        spikes, chosen = self.encoded(x), self.chosen
        early = self.layer("conv1", DFTConv2d, spikes.shape[1], 4, **chosen["geometry"])(spikes)
        pooled = early
        for kernel, stride, padding in chosen["pools"]:
            pooled = F.max_pool2d(pooled, kernel, stride, padding)
        skips = chosen["skips"] and skip_step(early.shape[1:], (6, *pooled.shape[2:])) is not None
        late = self.layer("conv2", DFTConv2d, 4, 6, 3, padding=1, skip=4 if skips else 0)
        mixed = late(pooled, skip=early) if skips else late(pooled)
        if chosen["joins"]:
            mixed = torch.cat([mixed, pooled], 1)
        average = 2 if not any(size % 2 for size in mixed.shape[2:]) and chosen["averages"] else 1
        mixed = self.layer("conv3", DFTConv2d, mixed.shape[1], 2, 1, average=average)(mixed).flatten(1)
        full = self.layer("fc", DFTLinear, mixed.shape[1], mixed.shape[1], skip=mixed.shape[1])(mixed, skip=mixed)
        if chosen["joins features"]:
            full = torch.cat([full, early.flatten(1)], 1)
        return self.layer("readout", Readout, full.shape[1], 3, **chosen["readout"])(full)


BITS = (2, 4, 8, 12)
NARROW = st.builds(Grid, one_of(1, 4, 7, 32), one_of(*BITS), st.booleans(), one_of(None, 8, 12))
WIDE = st.fixed_dictionaries({"steps": one_of(1, 5, 32, 300), "weight_bits": one_of(*BITS, None)})


@needs_gcc
@settings(max_examples=5, deadline=None)
@given(
    chosen=st.fixed_dictionaries(CHOICES),
    seed=st.integers(0, 99),
    scale=one_of(0.2, 0.6),
    grid=NARROW | WIDE,
    compiler=one_of(*[name for name in ("gcc", "clang") if shutil.which(name)]),
)
def test_file_equals_the_simulator(tmp_path_factory, chosen, seed, scale, grid, compiler):
    network = randomised(Everything(chosen), seed, scale)
    if isinstance(grid, Grid):
        put_on_grid(network, grid)
        grid = {}
    elif chosen["encoder"] is not LatencyEncoder:
        grid["weight_bits"] = grid["weight_bits"] or 8
    folder = tmp_path_factory.mktemp("c")
    assert_equal(network, noise(8, *network.image_shape), folder, compiler=compiler, **grid)


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("name", ["cnn1-mnist", "vgg9-cifar10", "cifarnet-cifar10"])
def test_bundled_networks_equal_the_simulator_on_a_thousand_images(name, tmp_path):
    network = load_network(f"bundled:{name}").network
    blurred = F.interpolate(noise(1000, network.image_shape[0], 8, 8).float(), network.image_shape[1:], mode="bilinear")
    assert_equal(network, blurred.to(torch.uint8), tmp_path, "-O3", steps=32, weight_bits=8)
    assert_equal(network, noise(10, *network.image_shape), tmp_path, steps=32, weight_bits=8)


@needs_gcc
@pytest.mark.parametrize("before", [nn.Flatten(), nn.MaxPool2d(2)])
def test_images_may_be_flattened_and_pooled_before_a_latency_encoder(before, tmp_path):
    inputs = before(torch.empty(1, 2, 4, 6)).numel()
    network = nn.Sequential(before, LatencyEncoder(), nn.Flatten(), DFTLinear(inputs, 8), Readout(8, 3))
    network.image_shape = (2, 4, 6)
    assert_equal(randomised(network, 0, 0.6), noise(20, 2, 4, 6), tmp_path)


@needs_gcc
@pytest.mark.parametrize("kind", [AnalogEncoder, SignedEncoder])
@pytest.mark.parametrize("groups", [1, 2])
def test_encoders_may_have_groups_and_dilation(kind, groups, tmp_path):
    encoder = kind(4, 6, (2, 3), 1, (1, 2), (3, 2), groups, mean=[0.4, 0.1, 0.5, 0.2], std=[0.1, 0.3, 0.2, 0.4])
    network = nn.Sequential(encoder, nn.Flatten(), Readout(6 * 6 * 6, 3))
    network.image_shape = (4, 7, 6)
    assert_equal(randomised(network, 0, 0.6), noise(20, 4, 7, 6), tmp_path)


@needs_gcc
@pytest.mark.parametrize(
    ("pool", "size"), [(nn.MaxPool2d(2, ceil_mode=True), 5), (nn.MaxPool2d(3, 2, ceil_mode=True), 16)]
)
def test_pools_may_read_parts_of_patches(pool, size, tmp_path):
    features = pool(torch.empty(1, 3, size, size)).numel()
    network = nn.Sequential(LatencyEncoder(), DFTConv2d(1, 3, 3, padding=1), pool, nn.Flatten(), Readout(features, 3))
    network.image_shape = (1, size, size)
    assert_equal(randomised(network, 0, 0.6), noise(20, 1, size, size), tmp_path)


@needs_gcc
@pytest.mark.parametrize("at", ["potential_start", "potential_end", "first_spike"])
@pytest.mark.parametrize("weight", [0.0, 1e-9, 1e-6])
def test_classes_may_have_tiny_weights(at, weight, tmp_path):
    network = nn.Sequential(LatencyEncoder(), nn.Flatten(), Readout(36, 4, at=at, weight_standardisation=False))
    network.image_shape = (1, 6, 6)
    readout = randomised(network, 0, 0.1)[-1]
    with torch.no_grad():
        readout.weight[1] *= weight
        readout.weight[3, 0] = -100  # the largest unit
    assert_equal(network, noise(200, 1, 6, 6), tmp_path)


def test_file_does_not_depend_on_the_device(device):
    network = nn.Sequential(AnalogEncoder(2, 3, 2, mean=[0.4, 0.3]), nn.Flatten(), Readout(36, 3))
    network.image_shape = (2, 4, 5)
    assert to_c(randomised(network, 0, 0.6)) == to_c(network.to(device))


@needs_gcc
def test_program_prints_classes_and_refuses_half_an_image(tmp_path):
    network, pixels = load_network("bundled:cnn1-mnist").network, noise(3, 1, 28, 28)
    program = compile_c(to_c(network, about={"Network": "*/ evil() /* é"}), tmp_path, "-Wall", "-Wextra", "-Werror")
    whole = subprocess.run([program], input=raw_bytes(pixels), capture_output=True)
    expected = simulate(network, [to_float(pixels)]).predictions
    assert (whole.returncode, list(map(int, whole.stdout.split()))) == (0, expected.tolist())
    half = subprocess.run([program], input=raw_bytes(pixels)[:-1], capture_output=True)
    assert (half.returncode, len(half.stdout.split())) == (1, 2)


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ((AnalogEncoder(1, 2, 3, mean=[0.4]), nn.Flatten(), Readout(72, 2)), (1, 8, 8), "got 24 bits and 4096 steps"),
        ((nn.MaxPool2d(2), AnalogEncoder(1, 2, 3), nn.Flatten(), Readout(8, 2)), (1, 8, 8), "read the image itself"),
        ((LatencyEncoder(), Readout(9, 2)), (9,), r"image_shape must be \(channels, height, width\); got \(9,\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused(layers, shape, message):
    with pytest.raises(ValueError, match=f"to_c: .*{message}"):
        to_c(nn.Sequential(*layers), steps=4096, weight_bits=None, image_shape=shape)


def test_a_missing_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="compile_c: a C compiler must be installed as cc; got none"):
        compile_c("", tmp_path)


@needs_gcc
def test_a_compiler_and_a_program_that_fail_are_told(tmp_path, capfd):
    with pytest.raises(RuntimeError, match=r"compile_c: cc must compile net\.c; got exit status 1\. Read"):
        compile_c(to_c(load_network("bundled:cnn1-mnist").network), tmp_path, "-Dint=short")
    assert "net_needs_an_int_of_32_bits" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match=r"compare_c: the compiled program must end with status 0; got 3\. "):
        compare_c("int main(void) { return 3; }", nn.Identity(), torch.zeros(1, 1, 1, 1))

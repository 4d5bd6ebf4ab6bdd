"""A step's kernels are compiled before it, and batches of another size, such as a last one, compile none anew.

Triton interprets in this process; processes of their own, by `main` and `print_variants`, compile or list kernels.
"""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from tests.bench.modules import modules, run_python
from ttfs_kernels.triton import blocks, compilation
from ttfs_kernels.triton.problem import PASSES
from ttfs_triton.nn import LatencyEncoder, NetworkConfig, TTFSNetwork

names = ("_kernels_compile", "_kernels_layers", "_machine_code")
kernels_compile, kernels_layers, machine_code = modules(*names)


class Reading(nn.Module):
    """Asks for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


def main() -> None:
    """Compile a small network's kernels for an H100; print what was said and what has changed, as JSON."""
    chip, said = kernels_compile.TARGETS["sm_90"], []
    machine_code._compile_for(chip)
    blocks.unavailable, blocks.chip_of = lambda *_: None, lambda _: chip
    LatencyEncoder._can_check = lambda *_: False  # as on a GPU
    config = NetworkConfig("8-8", image_size=(6, 6), batch_norm=True, dropout=0.5)
    network, images = TTFSNetwork(config, backend="triton"), torch.rand(4, 1, 6, 6)
    state = [*network.state_dict().values(), torch.get_rng_state()]
    before = [value.clone() for value in state]
    compilation.compile_kernels(network, images, nullcontext(), said.append)
    kept = all(map(torch.equal, before, [*state[:-1], torch.get_rng_state()]))
    gradients = any(parameter.grad is not None for parameter in network.parameters())
    with blocks.planned() as launches:
        network(images).sum().backward()
    kernels = {launch.kernel for launch in launches}
    count = sum(len(kernel.device_caches[chip][0]) for kernel in kernels)
    for launch in launches:  # of the step itself, with memory
        launch.kernel.warmup(*launch.values, grid=launch.grid, **launch.options)
    compiled_later = sum(len(kernel.device_caches[chip][0]) for kernel in kernels) - count
    print(json.dumps([said, kept, gradients, count, compiled_later]))


def test_kernels_of_a_step_are_compiled_before_it_and_nothing_is_computed():
    printed = run_python("-c", f"from {__name__} import main; main()")
    (line,), kept, gradients, count, compiled_later = json.loads(printed)
    assert line.startswith(f"Triton compiles {count} kernels, ")
    assert (kept, gradients, compiled_later) == (True, False, 0)


def test_a_network_that_reads_values_is_compiled_as_it_runs(monkeypatch):
    said = []
    monkeypatch.setattr(compilation, "INTERPRETING", False)
    compilation.compile_kernels(Reading(), torch.rand(2), nullcontext(), said.append)
    (line,) = said
    assert line.startswith("Triton compiles kernels one after another: ")


def variants(model: str, batch: int) -> dict[str, list[str]]:
    """By pass, what the kernels of a training step's spiking layers are compiled for on an H100."""
    chip = kernels_compile.TARGETS["sm_90"]
    found: dict[str, set[str]] = {which: set() for which in kernels_compile.WHICH}
    for layer in kernels_layers.load(kernels_layers.SHAPES):
        if any(name.startswith(model) for name in layer.networks):
            problem = layer.problem(batch, "bf16", 1.0)
            for which, signatures in found.items():
                config = blocks.blocks_of(which if which in PASSES else "forward", problem, chip, "ieee")
                launches = kernels_layers.plan_pass(which, problem, config)
                signatures |= {repr(kernels_compile.signature(launch, chip)) for launch in launches}
    return {which: sorted(signatures) for which, signatures in found.items()}


def print_variants(model: str) -> None:
    """Print the variants of a model by its number of images, as JSON."""
    print(json.dumps({batch: variants(model, batch) for batch in (256, 255, 1)}))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg16", "cnn1"])
def test_other_batches_compile_kernels_of_other_blocks_only(model):
    """Neither the number of images nor what follows from it is compiled into a kernel.

    For one image there are better blocks; kernels between the contractions have the same for all batches.
    """
    full, nearly, one = json.loads(
        run_python("-c", f"from {__name__} import print_variants; print_variants({model!r})")
    ).values()
    known = {signature for signatures in full.values() for signature in signatures}
    assert known.issuperset(signature for signatures in nearly.values() for signature in signatures)
    assert known.issuperset(name for name in one["forward"] if "conv2d" not in name)

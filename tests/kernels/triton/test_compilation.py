"""A step's kernels are compiled before it, in another process, since Triton interprets in this one."""

import json
from contextlib import nullcontext
from functools import partial

import torch
import triton
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from triton.compiler import CompiledKernel

from tests.bench.modules import modules, run_python
from ttfs_kernels.ops import dft_linear
from ttfs_kernels.triton import common, compilation
from ttfs_triton.nn import DFTLinear, NetworkConfig, Neuron, TTFSNetwork, coding

kernels_compile, _, machine_code = modules("_kernels_compile", "_kernels_layers", "_machine_code")
NEURON = Neuron(surrogate_width=0.5)


class Reading(nn.Module):
    """Asks for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


def main() -> None:
    """Compile a small network's kernels for an H100; print what was said and what has changed, as JSON.

    Those of a smaller batch, such as an epoch's last, are among them, and those of neurons of other numbers.
    """
    chip, said = kernels_compile.TARGETS["sm_90"], []
    machine_code._compile_for(chip)
    common.unavailable, common.chip_of = lambda *_: None, lambda _: chip
    coding.refuse_unscaled = lambda *_, **__: None  # as on a GPU
    config = NetworkConfig("8-8", image_size=(6, 6), batch_norm=True, dropout=0.5, neuron=NEURON)
    network, images = TTFSNetwork(config, backend="triton"), torch.rand(16, 1, 6, 6)
    state = [*network.state_dict().values(), torch.get_rng_state()]
    before = [value.clone() for value in state]
    compilation.compile_kernels(network, images, nullcontext(), said.append)
    kept = all(map(torch.equal, before, [*state[:-1], torch.get_rng_state()]))
    gradients = any(parameter.grad is not None for parameter in network.parameters())
    with common.planned() as launches:
        network(images).sum().backward()
        for layer in network.modules():
            if isinstance(layer, DFTLinear):
                layer.neuron = Neuron(0.1, 3.0, 0.25, 0.5)
        network(images[1:]).sum().backward()
    kernels = {launch.kernel for launch in launches}
    count = sum(len(kernel.device_caches[chip][0]) for kernel in kernels)
    for launch in launches:  # of the step itself, with memory
        launch.kernel.warmup(*launch.values, grid=launch.grid, **launch.options)
    compiled_later = sum(len(kernel.device_caches[chip][0]) for kernel in kernels) - count
    print(json.dumps([said, kept, gradients, count, compiled_later, launches_that_differ(network, images)]))


def launches_that_differ(network: nn.Module, images: Tensor) -> int:
    """Number of a step's launches whose repetition has other values or another kernel than Triton gave them."""
    launched: list[tuple] = []
    plain = partial(tree_map, lambda one: (one.dtype, one.shape) if isinstance(one, Tensor) else one)
    CompiledKernel._init_handles = lambda _: None  # there is no driver
    CompiledKernel.run = property(
        lambda kernel: lambda *values: launched.append((kernel, values[:3], plain(values[9:])))
    )
    pair = torch.rand(3, 8), torch.rand(65)[1:].view(8, 8)  # its address is no multiple of 16

    def step() -> list[tuple]:
        launched.clear()
        network(images).sum().backward()
        for weight in (pair[1].clone(), pair[1]):
            dft_linear(pair[0], weight, backend="triton")
        return launched.copy()

    before = step()
    assert before[-1][0] is not before[-2][0], "compiled apart, for another alignment"
    triton.JITFunction.run = None  # Triton binds no arguments any more
    return sum(one != other for one, other in zip(before, step(), strict=True))


def test_kernels_of_a_step_are_compiled_before_it_and_launched_as_triton_launches_them():
    printed = run_python("-c", f"from {__name__} import main; main()")
    (line,), kept, gradients, count, compiled_later, different = json.loads(printed)
    assert line.startswith(f"Triton compiles {count} kernels, ")
    assert (kept, gradients, compiled_later, different) == (True, False, 0, 0)


def test_a_network_that_reads_values_is_compiled_as_it_runs(monkeypatch):
    said = []
    monkeypatch.setattr(compilation, "INTERPRETING", False)
    compilation.compile_kernels(Reading(), torch.rand(2), nullcontext(), said.append)
    (line,) = said
    assert line.startswith("Triton compiles kernels one after another: ")

"""How many kernels a network's batches compile: a last batch of another size must not compile all of them anew.

Here Triton interprets; what it would compile is asked in a process of its own, which calls `main` below.
"""

import json
from functools import cache

import pytest

from tests.bench.modules import modules, run_python
from ttfs_kernels.triton_backend.configs import default_config
from ttfs_kernels.triton_backend.problem import PASSES

kernels_compile, kernels_layers = modules("_kernels_compile", "_kernels_layers")

FULL = 256
BATCHES = (FULL, 255, 100, 1)


def variants(model: str, batch: int) -> dict[str, list[str]]:
    """By pass, what the kernels of a training step's spiking layers are compiled for on an H100."""
    device = kernels_compile.TARGETS["sm_90"]
    found: dict[str, set[str]] = {which: set() for which in (*kernels_compile.WHICH, "pool")}
    for _, layer in kernels_layers.network_layers(model, batch, "bf16", 1.0)[0]:
        for which, signatures in found.items():
            if which == "pool" and layer.pool == 1:
                continue
            config, problem = None, layer
            if which in (*PASSES, "normalised"):
                problem = layer.unpooled  # pools have a kernel of their own until tuning says otherwise
                config = default_config(
                    which if which in PASSES else "forward", problem, device.chip, "ieee", device.processors
                )
            launches = kernels_layers.plan_pass(which, problem, config, "ieee", device).launches
            signatures |= {repr(kernels_compile.signature(launch)) for launch in launches}
    return {which: sorted(signatures) for which, signatures in found.items()}


def main() -> None:
    """Print the variants of all models and batches, as JSON."""
    models = ("vgg16", "cnn1")
    print(json.dumps({model: {batch: variants(model, batch) for batch in BATCHES} for model in models}))


@cache
def compiled() -> dict[str, dict[str, dict[str, list[str]]]]:
    """`main` in a process where Triton compiles."""
    return json.loads(run_python("-c", f"from {__name__} import main; main()"))


def new(model: str, batch: int, which: tuple[str, ...]) -> int:
    """Kernels of these passes that a batch compiles after full ones have been seen."""
    full, other = (compiled()[model][str(size)] for size in (FULL, batch))
    seen = {signature for signatures in full.values() for signature in signatures}
    return len({signature for name in which for signature in other[name]} - seen)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg16", "cnn1"])
def test_batches_of_the_same_blocks_compile_nothing(model):
    """Neither the number of images nor what follows from it is compiled into a kernel."""
    assert new(model, 255, kernels_compile.WHICH) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg16", "cnn1"])
@pytest.mark.parametrize("batch", [100, 1])
def test_local_gradients_have_the_same_blocks_for_all_batches(model, batch):
    """Contractions may compile others, where smaller blocks are better."""
    assert new(model, batch, ("local_gradient", "pool")) == 0

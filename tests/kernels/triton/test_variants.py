"""Batches of another size, such as a last one, must not compile a network's kernels anew.

Triton interprets in this process; a process of its own, by `main` below, lists what Triton would compile.
"""

import json

import pytest
import torch

from tests.bench.modules import modules, run_python
from tests.kernels.triton.network_layers import network_layers
from ttfs_kernels.triton.blocks import blocks_of
from ttfs_kernels.triton.problem import PASSES

kernels_compile, kernels_layers = modules("_kernels_compile", "_kernels_layers")


def variants(model: str, batch: int) -> dict[str, list[str]]:
    """By pass, what the kernels of a training step's spiking layers are compiled for on an H100."""
    chip = kernels_compile.TARGETS["sm_90"]
    found: dict[str, set[str]] = {which: set() for which in kernels_compile.WHICH}
    for _, layer in network_layers(model, batch, torch.bfloat16)[0]:
        for which, signatures in found.items():
            config = blocks_of(which if which in PASSES else "forward", layer, chip, "ieee")
            launches = kernels_layers.plan_pass(which, layer, config)
            signatures |= {repr(kernels_compile.signature(launch, chip)) for launch in launches}
    return {which: sorted(signatures) for which, signatures in found.items()}


def main(model: str) -> None:
    """Print the variants of a model by its number of images, as JSON."""
    print(json.dumps({batch: variants(model, batch) for batch in (256, 255, 1)}))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg16", "cnn1"])
def test_other_batches_compile_kernels_of_other_blocks_only(model):
    """Neither the number of images nor what follows from it is compiled into a kernel.

    For one image there are better blocks; kernels between the contractions have the same for all batches.
    """
    full, nearly, one = json.loads(run_python("-c", f"from {__name__} import main; main({model!r})")).values()
    known = {signature for signatures in full.values() for signature in signatures}
    assert known.issuperset(signature for signatures in nearly.values() for signature in signatures)
    assert known.issuperset(name for name in one["forward"] if "conv2d" not in name)

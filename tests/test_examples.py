"""Every example in a docstring does what it says."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import torch

import ttfs_kernels
import ttfs_triton

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> Iterator[doctest.DocTest]:
    """The docstrings with examples of all modules that can be imported here."""
    for package in (ttfs_kernels, ttfs_triton):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".triton_backend" in module.name:
                continue  # needs Triton; nothing public
            found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module.name))
            yield from (example for example in found if example.examples)


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_does_what_it_says(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # what an example writes is gone
    example.globs |= {"torch": torch}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(example)
    assert runner.failures == 0, capsys.readouterr().out
    assert runner.tries == len(example.examples)


@pytest.mark.parametrize(
    "name",
    [
        *("ttfs_kernels.ops.dft_linear", "ttfs_kernels.ops.dft_conv2d", "ttfs_kernels.neuron.Neuron"),
        *(f"ttfs_triton.nn.layers.{name}" for name in ("DFTConv2d", "DFTLinear")),
        *(f"ttfs_triton.nn.readout.{name}" for name in ("PotentialReadout", "FirstSpikeReadout")),
        *("ttfs_triton.nn.layers.EarliestSpikePool2d", "ttfs_triton.nn.config.NetworkConfig"),
        *("ttfs_triton.nn.models.TTFSNetwork", "ttfs_kernels.normalised.normalised_conv2d"),
        *(f"ttfs_triton.nn.networks.{name}" for name in ("cifarnet", "cnn1", "resnet20", "vgg11")),
    ],
)
def test_public_names_have_examples(name):
    assert name in {example.name for example in EXAMPLES}

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
            if ".triton" in module.name:
                continue  # needs Triton; nothing public
            documented = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module.name))
            yield from (example for example in documented if example.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_example_does_what_it_says(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # what an example writes is gone
    example.globs |= {"torch": torch}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(example)
    assert runner.failures == 0, capsys.readouterr().out
    assert runner.tries == len(example.examples)

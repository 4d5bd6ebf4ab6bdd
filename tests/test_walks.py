"""Files that a call enters: a reader who follows it has to open so many.

A ceiling is lowered when a walk gets shorter, and never raised; the goal is where it is to end.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.evaluate.cases import full_report
from ttfs_triton.evaluate.page import render_page
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import DFTConv2d, NetworkConfig
from ttfs_triton.train import TrainConfig, train

FOLDERS = tuple(str(Path(__file__).parents[1] / name) for name in ("ttfs_triton", "kernels"))
# Walk: (ceiling, goal).
WALKS = {
    "step of a layer": (6, 6),
    "step of a layer with batch norm": (6, 6),
    "step of a layer by our kernels": (8, 8),
    "step of a layer with batch norm by our kernels": (8, 8),
    "network from its files": (11, 5),
    "weights from their file": (4, 5),
    "page of an evaluation": (12, 12),
    "training from its configuration": (42, 20),
}


def files_of(call: Callable[[], object]) -> list[str]:
    """Our files in which a function is entered during a call, in this thread."""
    entered = set[str]()
    sys.setprofile(lambda frame, event, _: entered.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sorted(file for file in entered if file.startswith(FOLDERS))


def step(walk: str) -> Callable[[], object]:
    """A layer's forward and backward pass, after the first, in which more is prepared."""
    options = {"batch_norm": "batch norm" in walk, "backend": "triton" if "our kernels" in walk else "torch"}
    if options["backend"] == "triton" and not pytest.importorskip("ttfs_kernels.triton.common").INTERPRETING:
        pytest.skip("kernels read CPU tensors in Triton's interpreter only")
    layer, images = DFTConv2d(3, 4, 3, padding=1, **options).train(), torch.rand(2, 3, 8, 8)
    layer(images).sum().backward()
    return lambda: layer(images).sum().backward()


@pytest.mark.parametrize("walk", WALKS)
def test_walk_enters_few_files(walk, tmp_path):
    ceiling, _ = WALKS[walk]
    model = TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8)))
    model.save_pretrained(tmp_path / "model")
    few = {"dataset": "sample", "model": "4C5-P4-16", "epochs": 1, "max_train_samples": 200, "max_test_samples": 50}
    config, report = TrainConfig(**few, cpu=True, output_dir=tmp_path / "run"), full_report()
    calls = {
        "network from its files": (load := lambda: TTFSModel.from_pretrained(tmp_path / "model")),
        "weights from their file": load,
        "page of an evaluation": lambda: render_page(report),
        "training from its configuration": lambda: train(config),
    }
    files = files_of(step(walk) if walk.startswith("step") else calls[walk])
    if walk == "weights from their file":  # without the files that build the layers, as for any network
        files = [file for file in files if not file.startswith((FOLDERS[1], f"{FOLDERS[0]}/nn"))]
    assert len(files) <= ceiling, "\n".join(files)

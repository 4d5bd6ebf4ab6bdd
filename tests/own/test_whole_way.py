"""A network of one's own from training to the Hub, in the order of a notebook."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from recipes.own_network import build
from ttfs_triton import TTFSModel
from ttfs_triton.commands import EvaluationOptions
from ttfs_triton.data.images import load_images
from ttfs_triton.evaluate.command import run as evaluate_run
from ttfs_triton.hub.publish import publish
from ttfs_triton.train import Callback, TrainConfig, Trainer

OWN = Path(__file__).parents[2] / "recipes" / "own_network.py"
SIZES = {"in_channels": 1, "image_size": (28, 28), "classes": 10}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, network, test images of a short training, and what its callback heard."""
    torch.manual_seed(0)
    train = load_images("sample", split="train", max_samples=600)
    test = load_images("sample", split="test", like=train, max_samples=50)
    network, heard, folder = build(**SIZES), [], tmp_path_factory.mktemp("own") / "run"
    config = TrainConfig(epochs=2, batch_size=60, lr=4e-3, ema_decay=0.9, cpu=True, output_dir=folder)
    callback = Callback()
    for name in ("on_start", "on_step", "on_epoch", "on_end"):
        setattr(callback, name, lambda loop, *said, name=name: heard.append((name, loop.position.step, *said)))
    assert Trainer(network, (train, test), config, callbacks=[callback]).train()["test_accuracy"] > 0.2
    return folder, network.eval(), test.images / 255, heard


def test_run_calls_back_and_is_loaded_and_evaluated_by_its_code(trained, tmp_path):
    folder, network, images, heard = trained
    steps = [[("on_step", step) for step in range(first, first + 9)] for first in (1, 10)]
    epochs = [*steps[0], ("on_epoch", 9), *steps[1], ("on_epoch", 18)]
    assert [words[:2] for words in heard] == [("on_start", 0), *epochs, ("on_end", 18)]
    assert all(isinstance(words[2]["val_accuracy"], float) for words in heard if words[0] in ("on_epoch", "on_end"))
    loaded = TTFSModel.from_pretrained(folder, network=build(**SIZES))
    assert torch.equal(loaded(images), network(images))
    options = {"model": str(folder), "network": f"{OWN}:build", "max_test_samples": 20, "cpu": True, "steps": 8}
    page = evaluate_run(EvaluationOptions(**options, report=tmp_path / "page.html"))
    assert (page.scores.images, page.counts.samples, page.simulation.samples) == (20,) * 3
    assert "conv4" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("with_code", [False, True])
def test_published_run_is_used_by_the_words_of_its_card(trained, tmp_path, hub, run_code, with_code):
    folder, name = trained[0], f"org/own-{with_code}"
    publish(folder, name, network=f"{OWN}:build", with_code=with_code)
    files = hub.files(name)
    assert set(files) == {"model.safetensors", "config.json", "README.md", "training.yaml"} | {OWN.name} & files.keys()
    assert files.get(OWN.name) == (OWN.read_bytes() if with_code else None)
    published, best = load(files["model.safetensors"]), load((folder / "best" / "model.safetensors").read_bytes())
    assert published.keys() == best.keys()  # the header has the hash of another config.json, which names the builder
    assert all(torch.equal(tensor, best[name]) for name, tensor in published.items())
    assert "model: cnn1" not in files["training.yaml"].decode()
    card = files["README.md"].decode()
    assert ("nothing runs it unless you name it" in card) == with_code
    code = card.partition("```python\n")[2].partition("```")[0]
    assert with_code or f'from_pretrained("{name}", network="own_network.py:build")' in code
    Image.new("L", (30, 40)).save(tmp_path / "image.png")
    if not with_code:  # with its code, a reader needs nothing else
        shutil.copy(OWN, tmp_path)
    assert run_code(code).startswith("Classification(")

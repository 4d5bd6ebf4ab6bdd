"""A network of one's own from training to the Hub, in the order of a notebook."""

import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save_file

from recipes.own_network import build
from ttfs_triton import TTFSModel
from ttfs_triton.commands.evaluate import EvaluationOptions
from ttfs_triton.data.images import load_images
from ttfs_triton.evaluate.command import run as evaluate_run
from ttfs_triton.train import Callback, TrainConfig, Trainer

OWN = Path(__file__).parents[2] / "recipes" / "own_network.py"
SHAPE = (1, 28, 28)
CLASSES = 10


class Watch(Callback):
    def __init__(self):
        self.heard = []

    def on_start(self, loop):
        self.heard.append("start")

    def on_step(self, loop):
        self.heard.append(loop.position.step)

    def on_epoch(self, loop, line):
        self.heard.append(line["val_accuracy"])

    def on_end(self, loop, summary):
        self.heard.append(summary["test_accuracy"])


def test_own_network_all_the_way(tmp_path, hub, client):
    torch.manual_seed(0)
    # Train.
    train = load_images("sample", split="train", max_samples=600)
    test = load_images("sample", split="test", like=train, max_samples=50)
    network, watch, run = build(in_channels=1, image_size=(28, 28), classes=CLASSES), Watch(), tmp_path / "run"
    config = TrainConfig(epochs=2, batch_size=60, lr=4e-3, ema_decay=0.9, cpu=True, output_dir=run)
    summary = Trainer(network, (train, test), config, callbacks=[watch]).train()
    steps = 2 * (540 // 60)
    assert watch.heard[0] == "start"
    assert [found for found in watch.heard if isinstance(found, int)] == list(range(1, steps + 1))
    assert (len(watch.heard), watch.heard[-1]) == (steps + 4, summary["test_accuracy"])
    assert summary["test_accuracy"] > 0.2
    network.eval()
    images = test.images / 255
    logits = network(images)

    # Save and load: the code is passed, never found.
    model = TTFSModel.from_network(network, image_shape=SHAPE, class_names=train.class_names, builder="own.py:build")
    model.save_pretrained(tmp_path / "saved")
    for source in (tmp_path / "saved", run):
        loaded = TTFSModel.from_pretrained(source, network=build(1, (28, 28), CLASSES))
        assert torch.equal(loaded(images), logits)
        assert loaded.classify(images[0]).label == int(logits[0].argmax())

    # The command that evaluates, whose user names the code.
    options = {"model": str(run), "network": f"{OWN}:build", "max_test_samples": 20, "cpu": True, "steps": 8}
    page = evaluate_run(EvaluationOptions(**options, report=tmp_path / "page.html")).page
    assert (page.images, page.counts.samples, page.simulation.samples) == (20,) * 3
    assert "conv4" in (tmp_path / "page.html").read_text()

    # Publish, and load it elsewhere.
    client.run(
        "import torch; torch.set_num_threads(1); from recipes.own_network import build\n"
        "from ttfs_triton.model import *; from ttfs_triton.hub.publish import publish\n"
        f"publish({str(run)!r}, 'org/own', network={f'{OWN}:build'!r})"
    )
    files = hub.files("org/own")
    assert set(files) == {"model.safetensors", "config.json", "README.md", "training.yaml"}
    published, own = load(files["model.safetensors"]), load((run / "best" / "model.safetensors").read_bytes())
    assert published.keys() == own.keys()  # the header knows another config.json, which names the builder
    assert all(torch.equal(tensor, own[name]) for name, tensor in published.items())
    (code,) = [part.partition("```")[0] for part in files["README.md"].decode().split("```python\n")[1:]]
    assert 'from_pretrained("org/own", network="own_network.py:build")' in code
    Image.new("L", (30, 40)).save(tmp_path / "image.png")
    shutil.copy(OWN, tmp_path)
    assert client.run(f"import os; os.chdir({str(tmp_path)!r})\n{code}").startswith("Classification(")
    assert "model: cnn1" not in files["training.yaml"].decode()

    # With the code, a reader needs nothing else.
    shutil.move(tmp_path / OWN.name, tmp_path / "elsewhere.py")
    client.run(f"publish({str(run)!r}, 'org/code', network={f'{OWN}:build'!r}, with_code=True)")
    files = hub.files("org/code")
    assert files[OWN.name] == OWN.read_bytes()
    card = files["README.md"].decode()
    assert "nothing runs it unless you name it" in card
    assert "--network own_network.py:build`" in card
    assert client.run(card.partition("```python\n")[2].partition("```")[0]).startswith("Classification(")
    buffer = tmp_path / "images.safetensors"
    save_file({"images": images.contiguous(), "logits": logits.detach().contiguous()}, buffer)
    printed = client.run(
        "from safetensors.torch import load_file\n"
        f"found = load_file({str(buffer)!r})\n"
        f"model = TTFSModel.from_pretrained('org/own', network=lambda: build(1, (28, 28), {CLASSES}))\n"
        "print((model(found['images']) - found['logits']).abs().max().item())"
    )
    assert float(printed) < 1e-5

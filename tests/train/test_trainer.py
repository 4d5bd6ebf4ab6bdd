"""A run as a whole: what it leaves behind, what it says of itself, and what it refuses in a line."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from tests.hub.server import Repository
from tests.train.runs import TARGET, At, best, change, metrics
from ttfs_triton import TTFSModel
from ttfs_triton.energy import count
from ttfs_triton.nn import LayerStatistics, NetworkConfig, TTFSNetwork
from ttfs_triton.train import Callback, ConfigError, train
from ttfs_triton.train.data import load_data
from ttfs_triton.train.display import is_blind

BLIND = "so the network cannot tell images apart. Start again with a lower --lr"


def test_run_learns_and_leaves_the_documented_folder(config, capsys, device):
    config = change(config, epochs=8, cpu=device.type == "cpu", trackers=("tensorboard",))
    summary, folder = train(config), config.output_dir
    shown = capsys.readouterr().out
    assert BLIND not in shown
    names = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "best", "trackers"}
    assert {path.name for path in folder.iterdir()} == names
    assert list(folder.glob("trackers/**/events.out.tfevents*"))
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["weights_sha256"] == hashlib.sha256((folder / "best/model.safetensors").read_bytes()).hexdigest()
    assert summary["test_accuracy"] > 0.8
    assert summary["test_images"] == 45
    assert 0 < summary["sparsity"] < 1
    assert len(list((folder / "checkpoints").iterdir())) == config.keep_checkpoints
    lines = metrics(folder)
    assert lines[7]["train_loss"] < lines[0]["train_loss"]
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert (summary["val_accuracy"], summary["best_epoch"]) == max((x["val_accuracy"], x["epoch"]) for x in lines)
    network = TTFSNetwork(NetworkConfig.from_dict(json.loads((folder / "best/config.json").read_text())["network"]))
    network.load_state_dict(best(folder))


def test_callback_replaces_the_loss(config):
    def next_class(logits, labels):
        return F.cross_entropy(logits, (labels + 1) % 4)

    (callback := Callback()).on_start = lambda loop: setattr(loop.learner, "loss", next_class)
    assert train(change(config, epochs=8), callbacks=[callback])["test_accuracy"] < 0.2


def test_accumulation_gives_the_same_weights(config, tmp_path):
    """Of a network that also says what it costs."""
    plain = change(config, epochs=1, **TARGET)
    train(plain)
    for name, way in {"longer": {"lookahead": 99}, "accumulated": {"gradient_accumulation": 4}}.items():
        train(change(plain, output_dir=tmp_path / name, **way))
        for key, value in best(config.output_dir).items():
            torch.testing.assert_close(value, best(tmp_path / name)[key], atol=1e-5, rtol=0)


def test_test_images_are_scored_in_float32(config):
    kept = []
    summary = train(change(config, epochs=1, mixed_precision="bf16"), callbacks=[At(1, kept.append)])
    assert summary["mixed_precision"] == "bf16"
    test = load_data(config, Accelerator(cpu=True)).test
    images, labels = test.images_at(torch.arange(len(test))) / 255, test.labels
    network = TTFSModel.from_pretrained(config.output_dir)
    found = count(network, [images])
    torch.testing.assert_close(kept[0].network.eval()(images), network(images))  # also the one that was averaged
    assert [layer["spikes"] for layer in summary["counts"]["layers"]] == [layer.spikes for layer in found.layers]
    assert summary["test_accuracy"] == (network(images).argmax(1) == labels).sum().item() / len(labels)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 100_000}, "batch_size must be at most the number of training images; got 100000 for 128"),
        ({"sync_batch_norm": True}, "sync_batch_norm must have a network with batch norm; got one without. Leave"),
        ({"time_steps": 64, "weight_bits": 8, "state_bits": 8}, "Grid: state_bits must hold every layer's threshold"),
        ({"model": "4X3"}, r"^parse_specification: a token must look like"),
        ({"data_dir": "/nowhere"}, "nowhere"),
        ({"weights": "/nowhere"}, "weights: .*nowhere"),
        ({"data_dir": None}, r"^give --dataset .* or --data-dir"),
        ({"target_operations": 0.01}, r"target_operations must be above 0\.\d+, the cost of a network that"),
        ({"target_energy": "anp_i:1", "encoder": "analog"}, "which has no price for multiply-accumulates of conv1"),
    ],
)
def test_run_that_cannot_begin_is_told_and_leaves_nothing(config, values, message):
    with pytest.raises(ConfigError, match=message):
        train(change(config, **values))
    assert not config.output_dir.exists()


def test_layer_is_blind_if_each_neuron_does_the_same_for_all_samples():
    counts = {"samples": 10, "neurons": 4, "spikes": 30, "saturated": 30, "never_active": 1}
    layer = LayerStatistics(name="conv1", kind="spiking", **counts)
    assert is_blind(layer)
    assert is_blind(replace(layer, spikes=0, saturated=0, never_active=4))
    assert not is_blind(replace(layer, saturated=29)), "a spike has a time"
    assert not is_blind(replace(layer, never_active=0)), "a neuron was silent once"
    assert not is_blind(replace(layer, kind="readout"))
    assert not is_blind(replace(layer, samples=1, spikes=3, saturated=3)), "one image tells nothing"


def test_run_of_a_dead_network_warns_once_with_a_remedy(config, capsys):
    train(change(config, lr=100.0, dropout=0.0, ema_decay=0.0))
    assert capsys.readouterr().out.count(BLIND) == 1


PUBLISHED = {"epochs": 1, "push_to_hub": True, "hub_repo_id": "org/late"}


def test_missing_rights_end_the_run_before_it_starts(hub, here, config):
    config = change(config, **PUBLISHED)
    hub.repositories["org/open"] = Repository(False)
    for repo_id, message in (("other/run", "your token must have access"), ("org/open", "must be private, as asked")):
        with pytest.raises(ConfigError, match=f"push_to_hub: publish: .*{message}"):
            train(change(config, hub_repo_id=repo_id))
        assert not config.output_dir.exists()


def test_failed_upload_loses_nothing_and_resuming_repeats_it(hub, here, config, capsys):
    config = change(config, **PUBLISHED, hub_private=False, hub_license="mit")
    hub.drop = "POST .*/preupload"
    train(config)
    shown = capsys.readouterr().err
    assert "warning: the run is complete, but it was not published. publish: the Hub must answer" in shown
    by_hand = f"ttfs publish {config.output_dir} --repo-id org/late --public --license mit"
    assert f"Publish it by: {by_hand}" in shown
    assert json.loads((config.output_dir / "summary.json").read_text())["epochs"] == 1
    assert hub.files("org/late") == {}
    hub.drop = None
    train(change(config, resume=True))
    assert "This run has ended already" in capsys.readouterr().out
    assert "model.safetensors" in hub.files("org/late")

"""A training step: a teacher, updates that are cancelled, and no waiting for the device."""

from unittest.mock import Mock

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.train.runs import AUGMENTATION, At, change, last, metrics
from tests.virtual_cuda import recording
from ttfs_triton import TTFSModel
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train import ConfigError, DeviceLostError, Interrupted, NonFiniteLossError, TrainConfig, train
from ttfs_triton.train.build import build_network
from ttfs_triton.train.data import load_data, train_loader
from ttfs_triton.train.learner import FiniteGuard, Learner
from ttfs_triton.train.optimisation import build_optimizer, update_average


@pytest.fixture
def config(config, device):
    return change(config, cpu=device.type == "cpu", epochs=1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mixed_precision": "bf16", "gradient_clip": 1.0, "gradient_accumulation": 2, "optimizer": "adam"},
        {"mixed_precision": "fp16", "gradient_clip": 1.0, "gradient_accumulation": 2},
        {"mixed_precision": "fp16", "optimizer": "sgd", "ema_decay": 0.0},
        {"batch_norm": True, "lookahead": 3, "ema_decay": 0.0, "optimizer": "muon", "surrogate_width": 0.5},
        {"psp_persistence": 0.0, "batch_norm": True, "encoder": "analog"},
        {"target_energy": "lemaire45:int8:0.8", "gradient_accumulation": 2},
        {"teacher": "the one of these tests"},
        {"time_steps": 4, "weight_bits": 3},
        {"gradient_clip": 1.0, "gradient_accumulation": 2, "epochs": 2, **AUGMENTATION},
        {"mixed_precision": "fp16", "optimizer": "sgd", "data_placement": "host", "epochs": 2, **AUGMENTATION},
    ],
    ids=lambda values: "-".join(map(str, values.values())) or "defaults",
)
def test_step_never_waits_for_the_device(config, watched_device, monkeypatch, teacher, values):
    """Nor do gathering and augmentation."""
    steps, batches, step = [], [], Learner.step

    def watched_step(trainer, micro_batches, done):
        with recording() as record:
            step(trainer, micro_batches, done)
        steps.append(record)
        assert trainer.average is None or trainer.average.n_averaged.device == watched_device

    def watched_loader(*arguments, **options):
        loaded = train_loader(*arguments, **options)
        while True:
            with recording() as record:
                batch = next(loaded, None)
            batches.append(record)
            if batch is None:
                return
            yield batch

    monkeypatch.setattr(Learner, "step", watched_step)
    monkeypatch.setattr("ttfs_triton.train.loop.train_loader", watched_loader)
    config = change(config, statistics_steps=3, **values | ({"teacher": teacher} if "teacher" in values else {}))
    train(config)
    assert len(steps) == 8 * config.epochs
    # The first ones allocate tables, counters and moments.
    assert [record.synchronisations for record in (*steps[1:], *batches[1:])] == [{}] * (len(steps) + len(batches) - 2)
    assert all(record.operators.total() > 50 for record in steps)


def poison(monkeypatch, calls, where):
    """In one call, the loss or the gradient alone is not a number."""
    count, cross_entropy = [], torch.nn.functional.cross_entropy

    def poisoned(logits, labels, **options):
        count.append(None)
        if logits.requires_grad and (where == "gradients" or (len(count) == calls and where == "gradient")):
            logits.register_hook(lambda gradient: gradient * float("nan"))
        loss = cross_entropy(logits, labels, **options)
        return loss * float("nan") if len(count) == calls and where == "loss" else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", poisoned)


@pytest.mark.parametrize(("where", "optimizer"), [("loss", "adamw"), ("gradient", "sgd"), ("gradient", "muon")])
def test_weights_of_a_failed_run_are_those_before_the_failing_step(config, tmp_path, monkeypatch, where, optimizer):
    values = {"optimizer": optimizer, "gradient_clip": 1.0, "validation_fraction": 0.0, "log_steps": 100, "epochs": 2}
    values |= {"cuda_graph": "off"}  # a graph would not call the function that is poisoned
    config, until_then, kept = change(config, **values), tmp_path / "until_then", []
    with pytest.raises(Interrupted):
        train(change(config, output_dir=until_then), callbacks=[At(14)])
    poison(monkeypatch, 15, where)
    # Ten steps an epoch: the failure is read five steps later, at the epoch's end.
    with pytest.raises(NonFiniteLossError, match=r"step 15 \(epoch 2\): loss [\s\S]*conv1: active[\s\S]*00000010"):
        train(config, callbacks=[At(1, kept.append)])
    assert kept[0].position.step == 20
    before = last(until_then)
    for name, value in kept[0].network.state_dict().items():
        assert torch.equal(value.cpu(), before[f"model.{name}"]), name
    assert len(metrics(config.output_dir)) == 1


def test_failure_is_read_with_the_figures_and_before_a_checkpoint(config, tmp_path, monkeypatch):
    poison(monkeypatch, 3, "gradient")
    kept = []
    with pytest.raises(NonFiniteLossError, match=r"step 3 \(epoch 1\): loss \S+, gradient norm nan; stopped"):
        train(change(config, log_steps=4), callbacks=[At(1, kept.append)])
    assert kept[0].position.step == 4
    monkeypatch.undo()
    poison(monkeypatch, 3, "loss")
    with pytest.raises(NonFiniteLossError, match=r"loss nan[\s\S]*Last good checkpoint: .*step-00000002"):
        train(change(config, log_steps=100, checkpoint_steps=2, output_dir=tmp_path / "saved"))
    assert [path.stem for path in (tmp_path / "saved" / "checkpoints").iterdir()] == ["step-00000002"]


def test_fp16_whose_gradients_are_never_finite_is_refused(config, watched_device, monkeypatch):
    poison(monkeypatch, 0, "gradients")
    with pytest.raises(NonFiniteLossError, match=r"step 24: gradients are not finite in fp16, even unscaled"):
        train(change(config, mixed_precision="fp16", epochs=3, log_steps=100))


def test_guard_joins_a_gradient_scalers_flag(device):
    layer = nn.Linear(3, 2).to(device)
    optimizer = build_optimizer(TrainConfig(optimizer="sgd", lr=0.1), layer)
    guard = FiniteGuard(optimizer, device)

    def changes(failed, found_inf):
        failed, found_inf = torch.tensor([failed, found_inf], device=device)
        guard.watch(failed, failed, failed)
        layer(torch.ones(1, 3, device=device)).sum().backward()
        before = layer.weight.detach().clone()
        optimizer.found_inf = found_inf  # as a scaler does, which deletes it afterwards
        optimizer.step()
        del optimizer.found_inf
        return not torch.equal(before, layer.weight)

    assert [changes(0.0, 1.0), changes(0.0, 0.0), changes(1.0, 0.0), changes(0.0, 0.0)] == [False, True, False, False]
    assert guard.cancelled.item() == 2


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_warms_up_to_its_decay(device, decay):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(device)
    average, expected = AveragedModel(network, use_buffers=True), {}
    for number in range(9):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.rand_like(parameter))
        network(torch.rand(5, 3, device=device))
        update_average(average, network, decay, first=number == 0)
        average.n_averaged += 1
        kept = min(decay, (1 + number) / (10 + number)) if number else 0
        for name, value in network.state_dict().items():
            value = value.double()
            before = expected.get(name, value)
            expected[name] = kept * before + (1 - kept) * value if "num_batches" not in name else value
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


FAILURE = torch.AcceleratorError("CUDA error: unspecified launch failure\nKernel errors might be reported later.")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
NOT_ENOUGH = r"^train: the device's memory must suffice; got CUDA .*2\.00 GiB\. Last .*: none yet\. .*--batch-size"


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("learner.build_optimizer", OUT_OF_MEMORY, NOT_ENOUGH),
        ("learner.evaluate", FAILURE, r"device must work to the end; got .* failure\. Last .*: none yet\. .*--resume$"),
        ("learner.evaluate", MemoryError(), "main memory must suffice, .* got MemoryError. Last .*: none yet. Free"),
        ("run.load_data", MemoryError(), "^memory must suffice; got MemoryError. Use fewer"),
    ],
)
def test_lost_device_and_lack_of_memory_are_reported(config, monkeypatch, where, error, message):
    monkeypatch.setattr(f"ttfs_triton.train.{where}", Mock(side_effect=error))
    with pytest.raises((DeviceLostError, ConfigError), match=message):
        train(config)


SMALL = {"shift": 0, "dropout": 0.0, "ema_decay": 0.0, "epochs": 1}


def log_probabilities(network, images):
    logits = network.eval()(images).double()
    return logits - logits.exp().sum(1, keepdim=True).log()


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
def test_loss_is_the_labels_share_and_the_teachers(config, teacher, weight, monkeypatch):
    values = SMALL | {"batch_size": 128, "label_smoothing": 0.1, "teacher": teacher, "teacher_weight": weight}
    config = change(config, **values)
    monkeypatch.chdir(teacher.parent.parent)
    train(change(config, teacher=teacher.relative_to(teacher.parent.parent)))  # "folder/name", as a name on the Hub
    assert yaml.safe_load((config.output_dir / "config.yaml").read_text())["teacher"] == str(teacher)
    data = load_data(config, Accelerator())
    images = data.train.images_at(data.train_indices) / 255
    assert len(images) == 128, "one step"
    targets = torch.full((128, 4), 0.025, dtype=torch.float64)
    targets[torch.arange(128), data.train.labels[data.train_indices]] += 0.9
    with torch.no_grad():
        found = log_probabilities(build_network(config, data)[0], images)
        wanted = log_probabilities(TTFSModel.from_pretrained(teacher).network, images)
    expected = -(1 - weight) * (targets * found).sum(1) + weight * (wanted.exp() * (wanted - found)).sum(1)
    assert metrics(config.output_dir)[0]["train_loss"] == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "names", "message"),
    [
        ({"classes": 3}, None, r"classes a, b, c, d; got .*, trained on \(1, 8, 8\) in the classes 0, 1, 2\. Choose"),
        ({}, ["b", "a", "c", "d"], r"classes a, b, c, d; got .* in the classes b, a, c, d"),
        ({"image_size": (8, 9)}, None, r"images like these, \(1, 8, 8\) .*; got .*, trained on \(1, 8, 9\)"),
        (None, None, "teacher: load: .*teacher"),
    ],
)
def test_unfit_teacher_is_refused_before_the_run_begins(config, tmp_path, network, names, message):
    if network is not None:
        built = NetworkConfig("6C3", **{"image_size": (8, 8), "classes": 4} | network)
        TTFSModel(built, class_names=names).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ConfigError, match=message):
        train(change(config, teacher=tmp_path / "teacher"))
    assert not config.output_dir.exists()

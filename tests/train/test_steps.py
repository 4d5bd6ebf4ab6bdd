"""A training step never waits for the device, and cancels an update that would spoil the weights."""

from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.train.runs import AUGMENTATION, At, assert_same_run, change, last, metrics
from tests.virtual_cuda import recording
from ttfs_triton.train import DeviceLostError, Interrupted, NonFiniteLossError, TrainConfig, learner, loop, train
from ttfs_triton.train.optimisation import build_optimizer
from ttfs_triton.train.step import FiniteGuard, update_average


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
    steps, batches, step, loader = [], [], learner.Learner.step, loop.train_loader

    def watched_step(trainer, micro_batches, done):
        with recording() as record:
            step(trainer, micro_batches, done)
        steps.append(record)
        assert trainer.average is None or trainer.average.n_averaged.device == watched_device

    def watched_loader(*arguments, **options):
        loaded = loader(*arguments, **options)
        while True:
            with recording() as record:
                batch = next(loaded, None)
            batches.append(record)
            if batch is None:
                return
            yield batch

    monkeypatch.setattr(learner.Learner, "step", watched_step)
    monkeypatch.setattr(loop, "train_loader", watched_loader)
    config = change(config, statistics_steps=3, **values | ({"teacher": teacher} if "teacher" in values else {}))
    train(config)
    assert len(steps) == 8 * config.epochs
    # The first ones allocate tables, counters and moments.
    assert [record.synchronisations for record in (*steps[1:], *batches[1:])] == [{}] * (len(steps) + len(batches) - 2)
    assert all(record.operators.total() > 50 for record in steps)


def poison(monkeypatch, calls, where):
    """In one call, the loss or the gradient alone is not a number, or an error is raised."""
    count, cross_entropy = [], torch.nn.functional.cross_entropy

    def poisoned(logits, labels, **options):
        count.append(None)
        if len(count) == calls and isinstance(where, Exception):
            raise where
        if logits.requires_grad and (where == "gradients" or (len(count) == calls and where == "gradient")):
            logits.register_hook(lambda gradient: gradient * float("nan"))
        loss = cross_entropy(logits, labels, **options)
        return loss * float("nan") if len(count) == calls and where == "loss" else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", poisoned)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
def test_weights_of_a_failed_run_are_those_before_the_failing_step(config, tmp_path, monkeypatch, where, optimizer):
    values = {"optimizer": optimizer, "gradient_clip": 1.0, "validation_fraction": 0.0, "log_steps": 100, "epochs": 2}
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


def test_guard_keeps_the_first_failure_and_joins_a_gradient_scalers_flag(device):
    layer = nn.Linear(3, 2).to(device)
    optimizer = build_optimizer(TrainConfig(optimizer="sgd", lr=0.1), layer)
    guard = FiniteGuard(optimizer, device)

    def step(loss, failed, found_inf=None):
        value = torch.tensor(loss, device=device)
        guard.watch(value, value + 1, torch.tensor(float(failed), device=device))
        layer.zero_grad()
        layer(torch.ones(1, 3, device=device)).sum().backward()
        before = layer.weight.detach().clone()
        if found_inf is not None:
            optimizer.found_inf = torch.tensor(found_inf, device=device)
        optimizer.step()
        if found_inf is not None:
            del optimizer.found_inf  # as the scaler does
        return not torch.equal(before, layer.weight)

    assert step(1.0, False)
    assert not step(2.0, False, found_inf=1.0)
    assert step(3.0, False, found_inf=0.0)
    assert guard.cancelled.item() == 0
    assert not step(4.0, True, found_inf=0.0)
    assert not step(5.0, False, found_inf=0.0)
    assert (guard.cancelled.item(), guard.loss.item(), guard.norm.item()) == (2, 4, 5)


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


def test_seconds_of_an_epoch_are_read_when_the_device_has_ended_it(config, monkeypatch):
    now, read = [0], learner.sum_over_processes
    monkeypatch.setattr(loop, "time", Mock(perf_counter=lambda: now[0]))
    monkeypatch.setattr(learner, "sum_over_processes", lambda *sums: now.append(now.pop() + 5) or read(*sums))
    assert train(change(config, log_steps=100))["seconds_per_epoch"] == 5  # the steps take no time on the host


FAILURE = torch.AcceleratorError("CUDA error: unspecified launch failure\nKernel errors might be reported later.")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
NOT_ENOUGH = r"^train: the device's memory must suffice; got CUDA .*2\.00 GiB\. Last checkpoint: {}\. .*--batch-size"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FAILURE, r"the device must work to the end; got .* failure\. Last checkpoint: .*step-00000004\S* .*--resume$"),
        (OUT_OF_MEMORY, NOT_ENOUGH.format(r".*step-00000004\S*") + r".* and go on with: .*--resume$"),
    ],
    ids=["failure", "memory"],
)
def test_run_whose_device_is_lost_goes_on_from_its_last_checkpoint(config, tmp_path, monkeypatch, error, message):
    config = change(config, checkpoint_steps=2)
    train(change(config, output_dir=tmp_path / "whole"))
    poison(monkeypatch, 6, error)
    with pytest.raises(DeviceLostError, match=message):
        train(config)
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)
    train(change(config, resume=True))
    assert_same_run(tmp_path / "whole", config.output_dir)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("build_optimizer", OUT_OF_MEMORY, NOT_ENOUGH),
        ("evaluate", OUT_OF_MEMORY, NOT_ENOUGH),
        ("evaluate", MemoryError(), "main memory must suffice, .* got MemoryError. Last checkpoint: {}. Free memory"),
    ],
)
def test_lack_of_memory_outside_of_steps_is_reported_alike(config, monkeypatch, where, error, message):
    monkeypatch.setattr(learner, where, Mock(side_effect=error))
    with pytest.raises(DeviceLostError, match=message.format("none yet")):
        train(config)

"""What a training step asks of a device: it never waits for it, and cancels an update that would spoil the weights."""

from contextlib import contextmanager

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import nn

from tests.train.runs import SETTINGS, assert_same_run, last, make_images, metrics
from tests.virtual_cuda import installed, recording
from ttfs_triton.train import DeviceLostError, NonFiniteLossError, TrainConfig, loop, train
from ttfs_triton.train.build import build_optimizer
from ttfs_triton.train.update import FiniteGuard, make_average, update_average


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_parquet):
    return make_images(tmp_path_factory.mktemp("images"), write_parquet)


@pytest.fixture
def config(data, tmp_path, device):
    values = yaml.safe_load(SETTINGS) | {"cpu": device.type == "cpu", "epochs": 1}
    return TrainConfig(**values, data_dir=data, output_dir=tmp_path / "run")


def change(config, **values):
    return TrainConfig(**config.model_dump() | values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mixed_precision": "bf16", "gradient_clip": 1.0, "gradient_accumulation": 2, "optimizer": "adam"},
        {"mixed_precision": "fp16", "gradient_clip": 1.0, "gradient_accumulation": 2},
        {"mixed_precision": "fp16", "optimizer": "sgd", "ema_decay": 0.0},
        {"neuron": "ann", "batch_norm": True, "weight_standardisation": False, "encoder": "analog"},
    ],
    ids=lambda values: "-".join(map(str, values.values())) or "defaults",
)
def test_step_never_waits_for_the_device(config, device, monkeypatch, values):
    if not installed():
        pytest.skip("only the virtual device counts: --device virtual")
    records, step = [], loop.Trainer._train_step

    def watched(trainer, micro_batches):
        with recording() as record:
            step(trainer, micro_batches)
        records.append(record)

    monkeypatch.setattr(loop.Trainer, "_train_step", watched)
    train(change(config, statistics_steps=3, **values))
    assert len(records) == 8
    # The first step allocates counters and moments.
    assert [record.synchronisations for record in records[1:]] == [{}] * 7
    assert all(record.operators.total() > 50 for record in records)


def poison(monkeypatch, calls, where):
    """The loss, or the gradient alone, is not a number in one call."""
    count, cross_entropy = [], torch.nn.functional.cross_entropy

    def poisoned(logits, labels, **options):
        count.append(None)
        if len(count) == calls and where == "gradient":
            logits.register_hook(lambda gradient: gradient * float("nan"))
        loss = cross_entropy(logits, labels, **options)
        return loss * float("nan") if len(count) == calls and where == "loss" else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", poisoned)


@contextmanager
def final_trainer(monkeypatch):
    """The trainer of the run inside the block."""
    trainers, train_all = [], loop.Trainer.train

    def watched(trainer):
        trainers.append(trainer)
        train_all(trainer)

    monkeypatch.setattr(loop.Trainer, "train", watched)
    yield trainers


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_weights_of_a_failed_run_are_those_before_the_failing_step(
    config, tmp_path, monkeypatch, device, where, optimizer
):
    config = change(config, optimizer=optimizer, gradient_clip=1.0, validation_fraction=0.0, log_steps=100)
    train(change(config, epochs=2, checkpoint_steps=14, keep_checkpoints=9, output_dir=tmp_path / "whole"))
    (whole,) = (tmp_path / "whole" / "checkpoints").glob("*14")
    for other in (tmp_path / "whole" / "checkpoints").glob("step-*"):
        if other != whole:
            other.rename(tmp_path / other.name)
    before = last(tmp_path / "whole")
    poison(monkeypatch, 15, where)
    with final_trainer(monkeypatch) as trainers:
        # Ten steps an epoch: the failure is read five steps later, at the epoch's end.
        with pytest.raises(NonFiniteLossError, match=r"step 15 \(epoch 2\): loss [\s\S]*conv1: active[\s\S]*00000010"):
            train(change(config, epochs=2, output_dir=tmp_path / "run"))
    (trainer,) = trainers
    assert trainer.position.step == 20
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value.cpu(), before[f"model.{name}"]), name
    assert len(metrics(tmp_path / "run")) == 1


def test_failure_is_read_with_the_figures(config, monkeypatch):
    poison(monkeypatch, 3, "loss")
    with final_trainer(monkeypatch) as trainers:
        with pytest.raises(NonFiniteLossError, match=r"step 3 \(epoch 1\): loss nan, gradient norm nan; stopped"):
            train(change(config, log_steps=4))
    assert trainers[0].position.step == 4


def test_no_checkpoint_is_written_after_a_failure(config, monkeypatch):
    poison(monkeypatch, 3, "gradient")
    with pytest.raises(NonFiniteLossError, match=r"Last good checkpoint: .*step-00000002"):
        train(change(config, log_steps=100, checkpoint_steps=2))
    assert [path.name for path in (config.output_dir / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_first_update_may_be_skipped(device, kind):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).to(device)
    config = TrainConfig(optimizer=kind, lr=0.1)
    optimizer, x = build_optimizer(config, layer), torch.ones(4, 3, device=device)
    layer(x).sum().backward()
    before = [parameter.clone() for parameter in layer.parameters()]
    optimizer.found_inf = torch.ones((), device=device)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), before, strict=True))
    optimizer.found_inf.zero_()
    optimizer.step()
    skipped = [parameter.detach().clone() for parameter in layer.parameters()]
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).to(device)
    optimizer = build_optimizer(config, layer)
    layer(x).sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), skipped, strict=True))


def test_guard_keeps_the_first_failure_and_joins_a_gradient_scalers_flag(device):
    layer = nn.Linear(3, 2).to(device)
    optimizer = build_optimizer(TrainConfig(optimizer="sgd", lr=0.1), layer)
    guard = FiniteGuard(optimizer, device)

    def step(loss, failed, found_inf=None):
        value = torch.tensor(loss, device=device)
        guard.watch(value, value + 1, torch.tensor(failed, device=device))
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


@pytest.mark.parametrize("batch_norm", [False, True])
def test_average_is_pytorchs(device, batch_norm):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2) if batch_norm else nn.Identity()).to(device)
    ours, theirs = make_average(network, 0.9), make_average(network, 0.9)
    for number in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.rand_like(parameter))
        network(torch.rand(5, 3, device=device))
        update_average(ours, network, first=number == 0)
        ours.n_averaged += 1
        theirs.update_parameters(network)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
    ],
    ids=["failure", "memory"],
)
def test_run_whose_device_is_lost_goes_on_from_its_last_checkpoint(config, tmp_path, monkeypatch, error):
    config = change(config, checkpoint_steps=2)
    train(change(config, output_dir=tmp_path / "whole"))
    cross_entropy, calls = torch.nn.functional.cross_entropy, []

    def lost(*arguments, **options):
        calls.append(None)
        if len(calls) == 6:
            raise error
        return cross_entropy(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lost)
    message = r"^train: .* got CUDA .*\. Last checkpoint: .*step-00000004\. Go on with: .*--resume$"
    with pytest.raises(DeviceLostError, match=message):
        train(config)
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)
    train(change(config, resume=True))
    assert_same_run(tmp_path / "whole", config.output_dir)

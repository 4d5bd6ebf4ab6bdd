"""Values computed now are the recorded ones: see tests/golden. `python -m tests.golden` prints all that differ."""

from functools import cache

import pytest

pytest.importorskip("triton", reason="some of the recorded values are its kernels'")
pytest.importorskip("onnxruntime", reason="some of the recorded values are its outputs")

from tests.golden import cases
from tests.golden.record import Record

compute = cache(cases.compute)


@pytest.mark.parametrize("group", cases.GROUPS)
def test_values_are_the_recorded_ones(group):
    found = Record().differences(compute(group), group)
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("same_bits", "factor", "told"), [(True, 1e-6, True), (False, 1e-6, False), (False, 1e-3, True)]
)
def test_changed_tensor_is_told_of(same_bits, factor, told):
    record, values, name = Record(), dict(compute("bundled")), "bundled/cnn1-mnist/float32/logits"
    record.same_bits = same_bits
    values[name] = values[name] * (1 + factor)
    assert told == (name in [found.name for found in record.differences(values, "bundled")])


def test_missing_new_and_other_values_are_told_of():
    values = dict(compute("hardware"))
    del values["hardware/cnn1-mnist/conv1/spikes"]
    values["hardware/cnn1-mnist/conv2/spikes"] += 1
    values["hardware/cnn1-mnist/decisions"] = 1 - values["hardware/cnn1-mnist/decisions"]
    values["hardware/new"] = 1
    names = [found.name.removeprefix("hardware/") for found in Record().differences(values, "hardware")]
    assert set(names) >= {"cnn1-mnist/conv1/spikes", "cnn1-mnist/conv2/spikes", "cnn1-mnist/decisions", "new"}

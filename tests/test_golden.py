"""Values computed now are the recorded ones: see tests/golden. `python -m tests.golden` prints all that differ."""

from functools import cache

import pytest

pytest.importorskip("triton", reason="some of the recorded values are its kernels'")

from tests.golden import cases
from tests.golden.record import Record

compute = cache(cases.compute)


@pytest.mark.parametrize("group", cases.GROUPS)
def test_values_are_the_recorded_ones(group):
    assert Record().differences(compute(group), group) == {}


@pytest.mark.parametrize(
    ("same_bits", "factor", "told"), [(True, 1e-6, True), (False, 1e-6, False), (False, 1e-3, True)]
)
def test_other_values_are_told_of(same_bits, factor, told):
    record, values, of = Record(), dict(compute("hardware")), "hardware/cnn1-mnist/"
    record.same_bits = same_bits
    values[f"{of}float32/spike times"] = values[f"{of}float32/spike times"] * (1 + factor)
    values[f"{of}decisions"] = 1 - values[f"{of}decisions"]
    values[f"{of}conv2/spikes"] += 1
    values[f"{of}new"] = values.pop(f"{of}conv1/spikes")
    names = {name.removeprefix(of) for name in record.differences(values, "hardware")}
    assert ("float32/spike times" in names) == told
    assert names >= {"decisions", "conv1/spikes", "conv2/spikes", "new"}

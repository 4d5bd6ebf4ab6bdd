"""Values computed now are the recorded ones: see tests/golden. `make golden` prints all that differ."""

from functools import cache

import pytest

pytest.importorskip("triton", reason="some of the recorded values are its kernels'")

from tests.golden import cases
from tests.golden.record import Record

compute = cache(cases.compute)


@pytest.mark.parametrize("group", cases.GROUPS)
def test_values_are_the_recorded_ones(group):
    assert Record().differences(compute(group), group) == {}


def test_other_values_are_told_of():
    record, whole, of = Record(), compute("hardware"), "hardware/cnn1-mnist/"
    changed = {"decisions": 1 - whole[f"{of}decisions"], "conv2/spikes": whole[f"{of}conv2/spikes"] + 1, "new": 1}
    for record.same_bits, factor, told in ((True, 1e-6, True), (False, 1e-6, False), (False, 1e-3, True)):
        changed["float32/spike times"] = whole[f"{of}float32/spike times"] * (1 + factor)
        values = whole | {of + name: value for name, value in changed.items()}
        del values[f"{of}conv1/spikes"]
        names = {name.removeprefix(of) for name in record.differences(values, "hardware")}
        assert ("float32/spike times" in names) == told
        assert names >= {"decisions", "conv1/spikes", "conv2/spikes", "new"}

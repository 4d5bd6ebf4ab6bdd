"""Compute all values; print those that differ from the recorded ones, or record them with --write: `make golden`."""

import sys

from tests.golden.cases import GROUPS, compute
from tests.golden.record import Record, write

values = {group: compute(group) for group in GROUPS}
if sys.argv[1:] == ["--write"]:
    write({name: value for group in values.values() for name, value in group.items()})
    sys.exit()
record = Record()
differences = {name: text for group in GROUPS for name, text in record.differences(values[group], group).items()}
for name, text in differences.items():
    print(f"{name}: {text}")
print(f"{len(differences)} of {sum(map(len, values.values()))} values differ; bits compared: {record.same_bits}")
sys.exit(bool(differences))

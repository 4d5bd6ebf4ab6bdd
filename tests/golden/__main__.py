"""Compute all values; print those that differ from the recorded ones, or record them."""

import argparse
import sys

from tests.golden.cases import GROUPS, compute
from tests.golden.record import Record, write

parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
parser.add_argument("--write", action="store_true", help="record the values")
recording = parser.parse_args().write
values = {group: compute(group) for group in GROUPS}
if recording:
    write({name: value for group in values.values() for name, value in group.items()})
    sys.exit()
record = Record()
differences = {name: text for group in GROUPS for name, text in record.differences(values[group], group).items()}
for name, text in differences.items():
    print(f"{name}: {text}")
print(f"{len(differences)} of {sum(map(len, values.values()))} values differ; bits compared: {record.same_bits}")
sys.exit(bool(differences))

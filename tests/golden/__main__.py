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
differences = [difference for group in GROUPS for difference in record.differences(values[group], group)]
for difference in differences:
    print(difference)
print(f"{len(differences)} of {sum(map(len, values.values()))} values differ; bits compared: {record.same_bits}")
if differences:
    print(f"largest: {max(differences, key=lambda difference: difference.size)}")
sys.exit(bool(differences))

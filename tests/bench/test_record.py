import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--device", "cpu", "--output", "/somewhere/else"], ["--device", "cpu"]),
        (["--output=/somewhere", "runs/mnist"], ["runs/mnist"]),
        (["/home/somebody/runs/mnist", "--rounds", "5"], ["mnist", "--rounds", "5"]),
    ],
)
def test_commands_say_nothing_of_the_machine(given, kept, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    from _record import portable

    assert portable(given) == kept
    sys.modules.pop("_record")

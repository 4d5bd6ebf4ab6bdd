"""Result files: what they say of the machine, and what is read back."""

import pytest

from tests.bench.modules import record


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--device", "cpu", "--output", "/somewhere/else"], ["--device", "cpu"]),
        (["--output=/somewhere", "runs/mnist"], ["runs/mnist"]),
        (["/home/somebody/runs/mnist", "--rounds", "5"], ["mnist", "--rounds", "5"]),
    ],
)
def test_commands_say_nothing_of_the_machine(given, kept):
    assert record.portable(given) == kept


def test_rows_and_circumstances_are_read_back(tmp_path):
    rows = [{"layer": "conv1, 3×3", "ms": 0.5}, {"layer": "fc1", "ms": None, "note": "slow"}]
    about = {"command": "python bench/x.py: y", "threads": 1, "totals": {"ours": 2.5}, "cudnn": None}
    path = record.write(tmp_path / "new", "x", rows, about)
    assert path.read_text(encoding="utf-8").startswith("# command: python bench/x.py: y\n# threads: 1\n")
    assert record.read(path) == (
        [{"layer": "conv1, 3×3", "ms": "0.5", "note": ""}, {"layer": "fc1", "ms": "", "note": "slow"}],
        {"command": "python bench/x.py: y", "threads": "1", "totals": '{"ours": 2.5}'},
    )
    assert record.read(tmp_path / "none.csv") == ([], {})


def test_committed_results_say_how_they_came_about():
    """Each names the command that wrote it, or the commit in every row."""
    for path in (record.ROOT / "bench" / "results").glob("*.csv"):
        rows, about = record.read(path)
        assert rows, path
        assert "commit" in rows[0] or '"command"' in about.get("triton 3.9.0", "") or "command" in about, path

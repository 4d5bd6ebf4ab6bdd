"""What benchmarks share: result files, and the suites that are data."""

from tests.bench.modules import modules

bench, frontier = modules("_bench", "frontier")


def test_commands_say_nothing_of_the_machine():
    given = "--device cpu --output /somewhere/else --output=/somewhere runs/mnist /home/somebody/runs/mnist --rounds 5"
    assert bench.portable(given.split()) == "--device cpu runs/mnist mnist --rounds 5".split()


def test_rows_and_circumstances_are_read_back(tmp_path):
    rows = [{"layer": "conv1, 3×3", "ms": 0.5}, {"layer": "fc1", "ms": None, "note": "slow"}]
    about = {"command": "python bench/x.py: y", "threads": 1, "totals": {"ours": 2.5}, "cudnn": None}
    path = bench.write(tmp_path / "new", "x", rows, about)
    assert path.read_text(encoding="utf-8").startswith("# command: python bench/x.py: y\n# threads: 1\n")
    assert bench.read(path) == (
        [{"layer": "conv1, 3×3", "ms": "0.5", "note": ""}, {"layer": "fc1", "ms": "", "note": "slow"}],
        {"command": "python bench/x.py: y", "threads": "1", "totals": '{"ours": 2.5}'},
    )
    assert bench.read(tmp_path / "none.csv") == ([], {})


def test_committed_results_say_how_they_came_about():
    """Each names the command that wrote it, or the commit in every row."""
    for path in bench.RESULTS.glob("*.csv"):
        rows, about = bench.read(path)
        assert rows, path
        assert "commit" in rows[0] or '"command"' in about.get("triton 3.9.0", "") or "command" in about, path


def test_contenders_take_turns_and_ratios_are_of_rounds():
    assert list(bench.in_turns("abc", 3)) == list("abcbcacab")
    assert bench.ratio([3.0, 4.0, 20.0], [1.0, 2.0, 4.0]) == 3
    assert bench.percentiles([3.0, 1.0, 2.0, 1.5, 2.5]) == {"ms_p50": 2.0, "ms_p20": 1.4, "ms_p80": 2.6}


def test_sweeps_are_valid_options(tmp_path):
    for name in ("mnist", "cifar10"):
        settings = frontier.settings(frontier.Options(name, cpu=True, folder=tmp_path))
        assert settings.config.is_file()
        assert settings.target_sparsity[0] == "0.3"

"""Settings of all tests: the same random numbers in every run, no deadlines, --device and -m slow; shared fixtures."""

import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU, kernels run in Triton's interpreter; Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The first example of a test may compile or import for seconds: no deadline. Examples follow from the test: what
# passed once passes again. `--hypothesis-profile anew` draws others in every run.
settings.register_profile("anew", deadline=None)
settings.register_profile("ttfs", deadline=None, derandomize=True)
settings.load_profile("ttfs")


# Files that run long, and folders with such files: first, so that no process is left alone with one at the end.
LONG = {"test_golden.py", "virtual_cuda", "bench", "train"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("virtual",),
        help="virtual: only tests that take `device`, on a CUDA device that is not there (tests/virtual_cuda)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU that Triton supports; skipped elsewhere")
    config.addinivalue_line("markers", "slow: left out unless asked for with -m slow")
    if config.getoption("--device") == "virtual":
        # Interpreted kernels are slow: tests that want them say so.
        from tests.virtual_cuda import install
        from ttfs_kernels import checks

        if checks.VARIABLE not in os.environ:
            os.environ[checks.VARIABLE] = "torch"
            importlib.reload(checks)  # a folder's own conftest may have imported it before

        install()  # before anything runs a backward pass


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    virtual, slow = config.getoption("--device") == "virtual", "slow" in str(config.getoption("-m"))
    on_cuda = {item for item in items if hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"}
    too_slow = {item for item in items if item.get_closest_marker("slow") and not slow}
    left_out = [item for item in items if (virtual and item not in on_cuda) or item in too_slow]
    config.hook.pytest_deselected(items=left_out)
    kept = [item for item in items if item not in set(left_out)]
    items[:] = sorted(kept, key=lambda item: LONG.isdisjoint({item.path.name, item.path.parent.name}))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> Iterator[None]:
    """Turn off the check of every integer sum for overflow in Triton's interpreter, which takes half of its time."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import interpreter_builder

    options = interpreter_builder.options
    interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    yield
    interpreter_builder.options = options


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the first CUDA device: a real device, or with `--device virtual` the virtual one."""
    return torch.device("cpu") if request.param == "cpu" else torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _exact_float32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute float32 products in full precision on GPUs, ours and the library's; the library adds in a fixed order."""
    from ttfs_triton.nn.trace import float32_products

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    # Elsewhere, only the interpreter's blocks depend on the precision: those of TF32 gave the recorded values.
    with float32_products() if torch.cuda.is_available() or "kernels" in request.path.parts else nullcontext():
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Reset accelerate's singleton of precision and device, so that tests do not depend on each other."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_data_sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache data sets in a folder of the tests' own, also where `datasets` is imported later."""
    folder = str(tmp_path_factory.mktemp("datasets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", folder)
        if "datasets" in sys.modules:
            patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, _cache_of_data_sets: None) -> Path:
    """Folder of a run of one epoch on some of the bundled images."""
    from accelerate.state import AcceleratorState

    from ttfs_triton.train import TrainConfig, train

    network = {"model": "4C5-P4-16", "readout": "potential_end", "psp_persistence": 0.25}
    few = {"dataset": "sample", "epochs": 1, "lr": 2e-2, "max_train_samples": 300, "max_test_samples": 100}
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(TrainConfig(**network | few, output_dir=folder, cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def watched_device(device: torch.device) -> torch.device:
    """The virtual device, the only device that counts synchronisations and launches."""
    from tests.virtual_cuda import installed

    if not installed():
        pytest.skip("only the virtual device counts: --device virtual")
    return device

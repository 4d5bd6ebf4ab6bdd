"""One folder, one run: of several starts at the same moment one goes on, and what has ended bars nobody."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.train.runs import command, environment, make_images, metrics
from ttfs_triton.train import RunFolderError, TrainConfig
from ttfs_triton.train.claim import CLAIM, Claim, ClaimedError, Owner
from ttfs_triton.train.run import _new_folder
from ttfs_triton.train.run_folder import RunFolder

FRESH = {"resume": False, "overwrite": False}
ELSEWHERE = Owner(1, 100.0, "another-machine")


def leave_claim(folder: Path, owner: Owner) -> Path:
    """What a process that was killed leaves."""
    (folder / CLAIM).mkdir(parents=True)
    (folder / CLAIM / owner.name).touch()
    return folder


def ended_process() -> Owner:
    """A process of this machine that is no more."""
    with subprocess.Popen(["true"]) as process:
        pass
    return Owner(process.pid, 100.0, Owner.this_process().host)


def test_owner_is_read_from_its_name():
    owner = Owner.this_process()
    assert Owner.from_name(owner.name) == owner
    assert Owner.from_name("metrics.jsonl") is None
    assert not owner.is_gone()
    assert ended_process().is_gone()
    assert Owner(owner.pid, owner.started - 60, owner.host).is_gone()  # a later process of the same id
    assert not ELSEWHERE.is_gone()


def test_claim_excludes_others_until_it_is_released(tmp_path):
    claim = Claim(tmp_path / "run")
    with pytest.raises(ClaimedError, match=f"must belong to one run; process {os.getpid()} on .* Wait for it to end"):
        Claim(tmp_path / "run")
    claim.release()
    claim.release()
    assert list((tmp_path / "run").iterdir()) == []
    Claim(tmp_path / "run").release()


def test_claim_of_a_process_that_ended_does_not_count(tmp_path):
    leave_claim(tmp_path, ended_process())
    (tmp_path / f"{CLAIM}-{ended_process().name}").mkdir()
    Claim(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_claim_of_another_machine_counts_until_somebody_removes_it(tmp_path):
    leave_claim(tmp_path, ELSEWHERE)
    with pytest.raises(ClaimedError, match=f"as only another-machine can tell, remove {tmp_path / CLAIM}"):
        Claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM]


IN_CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--map-root-user"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*IN_CONTAINER, "true"], capture_output=True).returncode != 0,
    reason="needs unshare and the right to make a namespace of process ids",
)
def test_claim_of_a_container_of_the_same_name_counts(tmp_path):
    """There, no process of outside can be seen."""
    claim = Claim(tmp_path)
    script = f"from pathlib import Path; from ttfs_triton.train.claim import Claim; Claim(Path({str(tmp_path)!r}))"
    done = subprocess.run([*IN_CONTAINER, sys.executable, "-c", script], capture_output=True, text=True)
    assert f"ClaimedError: {tmp_path} must belong to one run; process {os.getpid()} on " in done.stderr
    claim.release()
    done = subprocess.run([*IN_CONTAINER, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ClaimedError, match=r"If it has ended, as only .*-\d+ can tell, remove"):
        Claim(tmp_path)


def test_unfinished_claim_of_a_start_in_the_same_moment_counts(tmp_path):
    (tmp_path / CLAIM).mkdir()
    (tmp_path / CLAIM / "unknown").touch()
    with pytest.raises(ClaimedError, match="another start is claiming it just now"):
        Claim(tmp_path)


def test_of_many_claims_over_an_ended_one_one_succeeds(tmp_path):
    for attempt in range(20):
        folder = leave_claim(tmp_path / str(attempt), ended_process())

        def claim(number: int, folder: Path = folder) -> bool:
            try:
                Claim(folder, Owner(os.getpid(), Owner.this_process().started, f"host{number}"))
            except ClaimedError:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(claim, range(16))) == 1


def test_claim_that_goes_while_it_is_read_is_in_nobodys_way(tmp_path, monkeypatch):
    leave_claim(tmp_path, ended_process())
    iterdir = Path.iterdir

    def removed_by_another_start(path: Path):
        if path.name == CLAIM:
            shutil.rmtree(path)
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", removed_by_another_start)
    Claim(tmp_path)
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / CLAIM).iterdir()] == [Owner.this_process().name]


def test_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system", str(tmp_path))

    monkeypatch.setattr("ttfs_triton.train.run_folder.Claim", refuse)
    with pytest.raises(RunFolderError, match="must be a folder that can be written; got Read-only file system"):
        RunFolder(tmp_path).claim(**FRESH)


def test_folder_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="file must be a folder; got a file"):
        RunFolder(tmp_path / "file").claim(**FRESH)


def test_run_is_not_begun_again_unasked(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunFolderError, match=r"already holds something\. Go on with that run by --resume"):
        RunFolder(tmp_path).claim(**FRESH)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("flags", [FRESH, FRESH | {"overwrite": True}])
def test_start_that_failed_early_can_be_repeated(tmp_path, monkeypatch, flags):
    config = TrainConfig.model_validate({"dataset": "sample", "overwrite": flags["overwrite"]})
    folder = RunFolder(tmp_path / "run")
    folder.claim(**FRESH)

    def full(path, text):
        (path.parent / f".{path.name}.partial-1").touch()  # as after a kill
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("ttfs_triton.train.run_folder.write_text", full)
        with pytest.raises(OSError, match="No space left"):
            folder.prepare(config)
    folder.release()
    again = RunFolder(tmp_path / "run")
    again.claim(**flags)
    again.prepare(config)
    assert {path.name for path in again.path.iterdir()} == {CLAIM, "checkpoints", "config.yaml"}
    again.release()


@pytest.mark.parametrize("moved", range(1, 4))
def test_overwriting_that_was_cut_short_is_finished_by_the_next_start(tmp_path, monkeypatch, moved):
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "best").mkdir()
    config = TrainConfig.model_validate({"dataset": "sample", "overwrite": True})
    renames, rename = [], Path.rename

    def killed(path, target):
        if len(renames) == moved:
            raise KeyboardInterrupt
        renames.append(path.name)
        return rename(path, target)

    folder = RunFolder(tmp_path)
    folder.claim(resume=False, overwrite=True)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.prepare(config)
    assert renames[0] == "config.yaml"
    folder.release()
    again = RunFolder(tmp_path)
    again.claim(**FRESH)
    again.prepare(config)
    again.release()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "config.yaml"}
    assert (tmp_path / "config.yaml").read_text() != "old"


def test_overwriting_empties_the_target_of_a_link_and_leaves_the_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/config.yaml").write_text("old")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    folder = RunFolder(tmp_path / "run")
    folder.claim(resume=False, overwrite=True)
    folder.prepare(TrainConfig.model_validate({"dataset": "sample", "overwrite": True}))
    folder.release()
    assert (tmp_path / "run").is_symlink()
    assert "dataset: sample" in (tmp_path / "disk/config.yaml").read_text()


def test_default_folders_are_unique(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: _new_folder("train_cnn_mnist"), range(24)))
    assert len(set(folders)) == 24
    assert all(folder.name.startswith("train_cnn_mnist-20") for folder in folders)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(RunFolderError, match="must be a folder that can be made; got Permission denied"):
        _new_folder("run")


@pytest.mark.slow
def test_three_simultaneous_starts_make_one_run(tmp_path, write_parquet):
    data = make_images(tmp_path / "images", write_parquet)
    processes = [
        subprocess.Popen(
            command(tmp_path, data, tmp_path / "run", "--seed", str(seed), settings="\nepochs: 2\n"),
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1, 1], messages
    seed = next(seed for seed, process in enumerate(processes) if process.returncode == 0)
    assert f"seed: {seed}\n" in (tmp_path / "run/config.yaml").read_text()
    assert len(metrics(tmp_path / "run")) == 2
    for process, message in zip(processes, messages, strict=True):
        assert process.returncode == 0 or message.count("\n") == 1, message

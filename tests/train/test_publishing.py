"""`--push-to-hub`: rights are checked before the run, files are sent after it, and a failed upload loses nothing."""

import json
import subprocess

import pytest

from tests.hub.client import Client, Raised, environment
from tests.hub.server import Repository
from tests.train.runs import SETTINGS, command

ONE_EPOCH = SETTINGS | {"epochs": 1}


@pytest.fixture(scope="module")
def client(hub, data, tmp_path_factory):
    """A process logged in as alice, in which `begin(output_dir, **changes)` trains for an epoch."""
    variables = environment(hub.url, tmp_path_factory.mktemp("home"), HF_TOKEN="hf_writer")
    process = Client(variables)
    process.run(
        f"""
from accelerate.state import AcceleratorState
from ttfs_triton.train import TrainConfig, train

def begin(output_dir, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    values = {ONE_EPOCH!r} | changes
    train(TrainConfig(**values, data_dir={str(data)!r}, output_dir=output_dir, push_to_hub=True))
"""
    )
    yield process
    process.close()


def test_run_is_published_privately_by_its_main_process(hub, data, tmp_path):
    flags = ("--push-to-hub", "--hub-repo-id", "org/trained", "--hub-license", "mit")
    words = command(tmp_path, data, tmp_path / "run", *flags, epochs=1, processes=2)
    variables = environment(hub.url, tmp_path / "home", HF_TOKEN="hf_writer", HF_DATASETS_CACHE=str(tmp_path / "cache"))
    hub.paths()
    result = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert hub.repositories["org/trained"].private
    requests = hub.paths()
    for request in ("GET /api/whoami-v2", "POST /api/repos/create", "POST /api/models/org/trained/commit/main"):
        # Who may write is asked before data are loaded and again when the files are there.
        assert requests.count(request) == (2 if "whoami" in request else 1)
    files = hub.files("org/trained")
    assert files["model.safetensors"] == (tmp_path / "run/best/model.safetensors").read_bytes()
    assert b"license: mit" in files["README.md"]
    assert b"a local data set" in files["README.md"]
    assert "published                http://127.0.0.1" in result.stdout
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert "hf_writer" not in result.stdout + result.stderr


def test_missing_rights_end_the_run_before_it_starts(hub, client, tmp_path):
    hub.repositories["org/open"] = Repository(False)
    for repo_id, message in (("other/run", "must belong to alice or org"), ("org/open", "must be private, as asked")):
        with pytest.raises(Raised, match=f"ConfigError: push_to_hub: publish: .*{message}"):
            client.run(f"begin({str(tmp_path / 'run')!r}, hub_repo_id={repo_id!r})")
        assert not (tmp_path / "run").exists()


def test_failed_upload_loses_nothing_and_resuming_repeats_it(hub, client, tmp_path):
    begin = f"begin({str(tmp_path / 'run')!r}, hub_repo_id='org/late', hub_private=False, hub_license='mit'"
    hub.drop = "POST .*/preupload"
    shown = client.run(f"{begin})")
    assert "warning: the run is complete, but it was not published. publish: the Hub must answer" in shown
    by_hand = f"ttfs publish {tmp_path / 'run'} --repo-id org/late --public --license mit"
    assert f"Publish it by: {by_hand}" in shown
    assert json.loads((tmp_path / "run/summary.json").read_text())["epochs"] == 1
    assert hub.files("org/late") == {}
    hub.drop = None
    assert "This run has ended already" in client.run(f"{begin}, resume=True)")
    assert "model.safetensors" in hub.files("org/late")

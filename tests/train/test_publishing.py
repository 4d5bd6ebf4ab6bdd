"""`--push-to-hub`: rights are checked before the run, files are sent after it, and a failed upload loses nothing."""

import json

import pytest

from tests.hub.server import Repository
from tests.train.runs import change
from ttfs_triton.train import ConfigError, train


@pytest.fixture
def config(config):
    return change(config, epochs=1, push_to_hub=True, hub_repo_id="org/late")


def test_missing_rights_end_the_run_before_it_starts(hub, here, config):
    hub.repositories["org/open"] = Repository(False)
    for repo_id, message in (("other/run", "your token must have access"), ("org/open", "must be private, as asked")):
        with pytest.raises(ConfigError, match=f"push_to_hub: publish: .*{message}"):
            train(change(config, hub_repo_id=repo_id))
        assert not config.output_dir.exists()


def test_failed_upload_loses_nothing_and_resuming_repeats_it(hub, here, config, capsys):
    config = change(config, hub_private=False, hub_license="mit")
    hub.drop = "POST .*/preupload"
    train(config)
    shown = capsys.readouterr().err
    assert "warning: the run is complete, but it was not published. publish: the Hub must answer" in shown
    by_hand = f"ttfs publish {config.output_dir} --repo-id org/late --public --license mit"
    assert f"Publish it by: {by_hand}" in shown
    assert json.loads((config.output_dir / "summary.json").read_text())["epochs"] == 1
    assert hub.files("org/late") == {}
    hub.drop = None
    train(change(config, resume=True))
    assert "This run has ended already" in capsys.readouterr().out
    assert "model.safetensors" in hub.files("org/late")

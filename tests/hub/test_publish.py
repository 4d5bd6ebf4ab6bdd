"""Publishing: rights are checked first, there is one commit, and a failure changes nothing."""

import pytest
from huggingface_hub import HfApi

from tests.hub.server import Repository
from ttfs_triton.commands import publish as main
from ttfs_triton.hub.publish import publish
from ttfs_triton.model.hub import HubError, check_account

pytestmark = pytest.mark.usefixtures("here")


def command(*words):
    main("Publish.", [str(word) for word in words])


def test_public_only_when_asked_to_and_a_dry_run_talks_to_nobody(hub, trained, capsys):
    hub.paths()
    command(trained, "--repo-id", "org/dry", "--dry-run")
    assert [line for line in hub.paths() if "agent-harnesses" not in line] == []
    shown = capsys.readouterr().out
    for part in ("model.safetensors", "config.json", "# dry", "dry run: nothing was sent to org/dry"):
        assert part in shown
    for name, flags, word in (("open", ["--public"], "for everybody"), ("closed", [], "privately")):
        command(trained, "--repo-id", f"org/{name}", *flags)
        assert hub.repositories[f"org/{name}"].private == (name == "closed")
        assert f"published {word}" in capsys.readouterr().out
    hub.repositories["org/hidden"] = Repository(True)
    with pytest.raises(HubError, match="org/hidden must be public, as asked; it is private"):
        publish(trained, "org/hidden", private=False)


def test_one_commit_replaces_what_is_stale_and_sends_weights_once(hub, trained):
    hub.repositories["org/old"] = Repository(True, {"1" * 40: {"README.md": b"old card", "notes.txt": b"mine"}})
    publish(trained, "org/old")
    files = hub.files("org/old")
    assert len(hub.repositories["org/old"].commits) == 2
    assert (files["README.md"][:4], files["notes.txt"]) == (b"---\n", b"mine")
    hub.paths()
    publish(trained, "org/old")
    assert not any(line.startswith("PUT") for line in hub.paths())


def test_a_commit_of_somebody_else_in_between_is_refused(hub, trained, monkeypatch):
    def preupload(*arguments, before=HfApi.preupload_lfs_files, **options):
        before(*arguments, **options)
        hub.repositories["org/two"].commits["1" * 40] = {"README.md": b"theirs"}

    monkeypatch.setattr(HfApi, "preupload_lfs_files", preupload)
    with pytest.raises(HubError, match=r"^publish: org/two must stay as it is during an upload; somebody else"):
        publish(trained, "org/two")
    assert hub.files("org/two") == {"README.md": b"theirs"}


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("org/new", None, r"a token must be there; got none\. Run `hf auth login`"),
        ("org/new", "hf_wrong", "org/new must be readable, and your token valid; the Hub refused access"),
        ("other/new", "hf_writer", "your token must have access to other/new for this; the Hub refused it"),
        ("locked/there", "hf_writer", "your token must have access to locked/there for this; the Hub refused it"),
        ("org/public", "hf_writer", "org/public must be private, as asked; it is public. Ask for a public repo"),
    ],
)
def test_rights_are_found_out_before_anything_is_sent(hub, trained, repo_id, token, message, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    hub.repositories["locked/there"] = Repository(True)
    hub.repositories["org/public"] = Repository(False)
    before = {name: dict(repository.commits) for name, repository in hub.repositories.items()}
    hub.paths()
    with pytest.raises(HubError, match=f"^publish: {message}") as raised:
        publish(trained, repo_id, token=token)
    assert "hf_" not in str(raised.value)
    changes = {line for line in hub.paths() if not line.startswith(("GET", "HEAD"))}
    assert changes <= {"POST /api/repos/create", "POST /api/validate-yaml"}
    assert {name: repository.commits for name, repository in hub.repositories.items()} == before


@pytest.mark.parametrize("where", ["PUT /lfs", "POST .*/commit/main"])
def test_interrupted_upload_changes_nothing_and_goes_on(hub, run, where, capsys):
    repo_id = f"org/cut-{where[:3].lower()}"
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    hub.objects.clear()
    hub.drop = where
    with pytest.raises(SystemExit, match="1"):
        command(run, "--repo-id", repo_id)
    message = capsys.readouterr().err
    assert f"error: the Hub must answer for {repo_id}" in message
    assert f"Nothing has changed in {repo_id}; {run} is as it was. Publish it again." in message
    assert hub.files(repo_id) == {}
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
    hub.drop = None
    command(run, "--repo-id", repo_id)
    files = hub.files(repo_id)
    assert set(files) == {"model.safetensors", "config.json", "README.md", "training.yaml"}
    assert files["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "network", "message"),
    [
        ("own.py", None, "publish: with_code must go with network, FILE.py:FUNCTION; got None. Name the file"),
        ("a b.py", "{}:build", "publish: network must be a file of a plain name; got 'a b.py'. Rename it"),
        ("own.py", "gone.py:build", "network: must name a Python file that exists; got gone.py"),
        ("own.py", "{}:build", "network must be None where .* says how it is built"),
    ],
)
def test_code_is_published_only_if_its_file_was_named(hub, trained, tmp_path, name, network, message):
    path = tmp_path / name
    path.write_text("from torch import nn\ndef build():\n    return nn.Identity()\n")
    with pytest.raises(ValueError, match=message):
        publish(trained, "a/b", dry_run=True, with_code=True, network=network and network.format(path))


def test_mistakes_are_told_plainly_before_a_repository_is_made(hub, trained, tmp_path, capsys):
    for arguments, message in (
        ((trained, "--repo-id", "name", "--dry-run"), "error: repo_id must be owner/name"),
        ((f"{trained}/nowhere", "--repo-id", "a/b", "--dry-run"), "error: source must be a file, a folder"),
        ((trained, "--repo-id", "org/nothing", "--chip", "nowhere"), "nowhere"),
    ):
        with pytest.raises(SystemExit, match="1"):
            command(*arguments)
        assert message in capsys.readouterr().err
    assert "org/nothing" not in hub.repositories
    for name in ("../x", "org/..", "org/../new", "org/-x", "org/x.git", "a" * 300 + "/b", "a/\x00"):
        with pytest.raises(HubError, match="repo_id must be owner/name"):
            check_account(name)

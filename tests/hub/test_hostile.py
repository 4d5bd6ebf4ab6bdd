"""A damaged or hostile Hub: nothing is written outside of the cache, errors are one sentence, waiting ends."""

import json

import pytest

from tests.hub.client import Client, Raised, environment
from tests.hub.server import Repository
from ttfs_triton import TTFSModel
from ttfs_triton.model.hub import HubError

EVIL = "../../../../outside"
INFO = "GET /api/models/org/hostile/revision/main"


@pytest.fixture(scope="module")
def served(hub, trained):
    """The name of a repository with a model."""
    files = {name: (trained / "best" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.repositories["org/hostile"] = Repository(False, {"1" * 40: files})
    return "org/hostile"


@pytest.fixture
def twisted(hub, served):
    """Changes of the hub's answers, by a pattern of "METHOD path"."""
    yield lambda pattern, **change: hub.twists.append((pattern, change))
    hub.twists.clear()


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        ("HEAD .*", {"headers": {"ETag": f'"{EVIL}"'}}, "ETag of the Hub's answer must be a plain name"),
        ("HEAD .*", {"headers": {"X-Linked-Etag": f'"{EVIL}"'}}, "X-Linked-Etag of the Hub's answer"),
        ("HEAD .*", {"headers": {"X-Repo-Commit": EVIL}}, "X-Repo-Commit of the Hub's answer must be"),
        (INFO, {"values": {"sha": EVIL}}, "sha of the Hub's answer must be a plain name"),
        (INFO, {"values": {"sha": ["1" * 40]}}, "sha of the Hub's answer must be"),
        (".*tree.*", {"data": json.dumps([{"type": "file", "path": "a", "size": 1, "oid": EVIL}])}, "oid of the Hub's"),
        *(
            (pattern, {"data": data}, "")
            for pattern in (INFO, ".*tree.*")
            for data in ("{", "[" * 10**5, "7", '{"id": 3, "siblings": [1]}', "[null]", "\xff\x00")
        ),
    ],
)
def test_answers_are_checked_before_anything_is_written(here, served, twisted, tmp_path, pattern, change, message):
    twisted(pattern, **change)
    with pytest.raises(HubError, match=f"^download: .*{message}"):
        TTFSModel.from_pretrained(served, cache_dir=tmp_path / "deep" / "cache")
    assert [path.name for path in tmp_path.iterdir()] in (["deep"], [])
    assert not list(tmp_path.rglob("*outside*"))


@pytest.fixture(scope="module")
def impatient(hub, home):
    """A process that gives a hub two seconds for an answer."""
    process = Client(environment(hub.url, home))
    process.run("from ttfs_triton.model import *")
    process.run("from ttfs_triton.model import hub; hub.ANSWER_SECONDS = 2")
    yield process
    process.process.kill()
    process.close()


@pytest.mark.parametrize("pattern", [INFO, "GET .*safetensors", "HEAD .*config.json"])
def test_a_hub_that_drips_is_given_up(impatient, served, twisted, tmp_path, pattern):
    twisted(pattern, drip=0.2)
    with pytest.raises(Raised, match=r"the Hub must answer for org/hostile; TimeoutError: it took more than \d s"):
        impatient.run(f"TTFSModel.from_pretrained({served!r}, cache_dir={str(tmp_path)!r})")


def test_errors_of_this_machine_stay_what_they_are(here, served, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        TTFSModel.from_pretrained(served, cache_dir=tmp_path / "file" / "below")
    TTFSModel.from_pretrained(served, cache_dir=tmp_path / "other")

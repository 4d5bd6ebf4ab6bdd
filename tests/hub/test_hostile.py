"""A damaged or hostile Hub: nothing is written outside of the cache, errors are one sentence."""

import pytest

from tests.hub.server import Repository
from ttfs_triton import TTFSModel
from ttfs_triton.model.hub import HubError

EVIL = "../../../../outside"
INFO = "GET /api/models/org/hostile/revision/main"


@pytest.fixture
def served(hub, trained):
    """The name of a repository with a model."""
    files = {name: (trained / "best" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.repositories["org/hostile"] = Repository(False, {"1" * 40: files})
    yield "org/hostile"
    hub.twists.clear()


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        ("HEAD .*", {"headers": {"ETag": f'"{EVIL}"'}}, "ETag of the Hub's answer must be a plain name"),
        ("HEAD .*", {"headers": {"X-Linked-Etag": f'"{EVIL}"'}}, "ETag of the Hub's answer must be a plain name"),
        ("HEAD .*", {"headers": {"X-Repo-Commit": EVIL}}, ""),
        (INFO, {"values": {"sha": EVIL}}, ""),
        *((INFO, {"data": data}, "") for data in ("{", "[" * 10**5, "7", '{"id": 3, "siblings": [1]}', "\xff\x00")),
        (".*tree.*", {"data": "[null]"}, ""),
    ],
)
def test_nothing_is_written_outside_of_the_cache(hub, here, served, tmp_path, pattern, change, message):
    hub.twists.append((pattern, change))
    with pytest.raises(HubError, match=f"^download: .*{message}"):
        TTFSModel.from_pretrained(served, cache_dir=tmp_path / "deep" / "cache")
    assert [path.name for path in tmp_path.iterdir()] in (["deep"], [])
    assert not list(tmp_path.rglob("*outside*"))


def test_errors_of_this_machine_stay_what_they_are(here, served, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        TTFSModel.from_pretrained(served, cache_dir=tmp_path / "file" / "below")
    TTFSModel.from_pretrained(served, cache_dir=tmp_path / "other")

"""YAML of others: what is read, and what is refused before it costs anything."""

import os

import pytest

from ttfs_triton.untrusted_files import MAX_BYTES, YamlError, read_mapping

BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(ord("a"), ord("y")))


def test_mappings_are_read(tmp_path):
    for content, values in ((b"", {}), (b"a: {b: \xc3\xa7}\nc: [x, null]\n", {"a": {"b": "ç"}, "c": ["x", None]})):
        (tmp_path / "a.yaml").write_bytes(content)
        assert read_mapping(tmp_path / "a.yaml") == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, r"must have no aliases; got \*a\. Write the value out"),
        (b"a: [1\n", "must be valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []\n", "must be valid YAML"),
        (b"a: \xff\n", "must be UTF-8 text; byte 3 is not"),
        (b'a: "\\ud800"', r"must hold whole characters; got half of one, such as \\ud800"),
        (b"a: 2001-99-99\n", "must be valid YAML; month must be in 1..12"),
        (b"a: " + b"1" * 5000, "must be valid YAML; Exceeds the limit"),
        (b"[" * 10_000, "must be nested at most 20 deep"),
        (b"{[1]: 2}", "must be valid YAML"),
        (b"- 1\n", "must hold `key: value` lines; got list"),
        (b"1: 2\n", "must hold `key: value` lines; got keys that are not names"),
        (b"a: {b: 1, b: 2}\n", "must have every key once; got 'b' twice"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(YamlError, match=message):
        read_mapping(tmp_path / "a.yaml")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_mapping(tmp_path / "nothing")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.yaml")
    can_be_read = "must be a file that can be read"
    for name, message in ((".", ""), ("large.yaml", ".*at most 65536 are allowed"), ("pipe.yaml", "; no regular file")):
        with pytest.raises(YamlError, match=can_be_read + message):
            read_mapping(tmp_path / name)

"""A disk that loses power: records what is done to a folder, and gives every state that may be left of it.

The model is what POSIX promises, not what one file system does: a file's bytes are certain once it was synced, else
some, all or none of them are there; the names in a folder are certain once that folder was synced, else each change
since then (made, renamed, removed) may have reached the disk or not, whatever became of the others.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Tree = Mapping[str, "Tree | bytes"]
_recording: list[Disk] = []  # audit hooks cannot be taken off again


class Node:
    """A file or a folder: what was synced of it, and what was done since."""

    def __init__(self, is_folder: bool) -> None:
        self.is_folder = is_folder
        self.synced: dict[str, Node] = {}
        self.pending: list[dict[str, Node | None]] = []  # changes of names, each as a whole
        self.versions: tuple[bytes, ...] = (b"",)  # what may be found in a file

    def now(self) -> dict[str, Node]:
        """Entries as programs see them."""
        return _applied(self.synced, self.pending)


class Disk:
    """What programs did to `root`, which starts empty and synced. `states` gives what a loss of power may leave now."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Node(True)
        self.written: tuple[Node, Path] | None = None  # a file that was opened for writing and is not synced yet
        self.states: dict[str, tuple[Tree, int]] = {}
        self.done = 0  # what the test says is certain by now; kept with each state

    def path(self, path: Any, folder: int = -1) -> Path | None:
        """A path under `root`, None if it is elsewhere."""
        base = Path(os.readlink(f"/proc/self/fd/{folder}")) if folder not in (-1, None) else Path.cwd()
        full = base / os.fsdecode(path)
        return full if full.is_relative_to(self.root) and full != self.root else None

    def node(self, path: Path) -> Node | None:
        """What is at a path now."""
        node: Node | None = self.top
        for part in path.relative_to(self.root).parts:
            node = node.now().get(part) if node is not None else None
        return node

    def change(self, path: Path, node: Node | None, old: Path | None = None) -> None:
        """A name in a folder changes; `old` names what it was called in the same folder."""
        parent = self.node(path.parent)
        assert parent is not None
        assert old is None or old.parent == path.parent
        parent.pending.append(({} if old is None else {old.name: None}) | {path.name: node})

    def observe(self, event: str, values: tuple[Any, ...]) -> None:
        """An event of Python's audit, which comes before the call: what may be left now, then what the call will do.

        Calls that will fail, as making a folder that is there already, do nothing.
        """
        if event == "open" and isinstance(values[0], str | bytes) and values[2] & os.O_CREAT:
            if (path := self.path(values[0])) and (values[2] & os.O_TRUNC or self.node(path) is None):
                self.snapshot()
                self.written = (self.node(path) or Node(False), path)
                self.change(path, self.written[0])
        elif event == "os.mkdir":
            if (path := self.path(values[0], values[2])) and self.node(path) is None and self.node(path.parent):
                self.snapshot()
                self.change(path, Node(True))
        elif event in ("os.remove", "os.rmdir"):
            if (path := self.path(values[0], values[1])) and (node := self.node(path)) and not node.now():
                self.snapshot()
                self.change(path, None)
        elif event == "os.rename" and (path := self.path(values[1], values[3])):
            old = self.path(values[0], values[2])
            if old and (node := self.node(old)) and not ((there := self.node(path)) and there.now()):
                self.snapshot()
                self.change(path, node, old)

    def sync(self, descriptor: int) -> None:
        """A file or folder is synced."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        node = self.top if path == self.root else self.node(path) if path.is_relative_to(self.root) else None
        if node is None:
            return
        self.snapshot()
        if node.is_folder:
            node.synced, node.pending = node.now(), []
        else:
            node.versions, self.written = (path.read_bytes(),), None

    def snapshot(self) -> None:
        """Note all states that a loss of power may leave at this moment."""
        if self.written is not None:
            node, path = self.written
            data = path.read_bytes() if path.is_file() else b""
            node.versions = tuple({b"", data[: len(data) // 2], data})
        for tree in _trees(self.top):
            # The same state may be met again when more is certain: the later demand is the stricter one.
            self.states[repr(tree)] = (tree, self.done)


@contextmanager
def recorded(root: Path) -> Iterator[Disk]:
    """Record what the block does under `root`, an empty folder."""
    if not _recording:
        sys.addaudithook(lambda event, values: _recording[-1].observe(event, values) if _recording[1:] else None)
        _recording.append(Disk(root))  # stays: that a hook is there
    disk, sync = Disk(root), os.fsync

    def synced(descriptor: int) -> None:
        sync(descriptor)
        disk.sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        _recording.append(disk)
        try:
            yield disk
        finally:
            _recording.remove(disk)
    disk.snapshot()


def lay_out(tree: Tree, folder: Path) -> None:
    """Write a state to a folder."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            lay_out(content, folder / name)


def _applied(entries: dict[str, Node], changes: Any) -> dict[str, Node]:
    found: dict[str, Node | None] = dict(entries)
    for change in changes:
        found |= change
    return {name: node for name, node in found.items() if node is not None}


def _trees(node: Node) -> list[Tree]:
    """All states of a folder: every choice of its changes, with all states of what is in it."""
    choices = {}
    for kept in itertools.product((False, True), repeat=len(node.pending)):
        entries = _applied(node.synced, itertools.compress(node.pending, kept))
        choices[tuple(sorted((name, id(entry)) for name, entry in entries.items()))] = entries
    found: list[Tree] = []
    for entries in choices.values():
        contents = [_trees(entry) if entry.is_folder else entry.versions for entry in entries.values()]
        found += [dict(zip(entries, content, strict=True)) for content in itertools.product(*contents)]
    return found

"""A Hub of our own on the loopback: what huggingface_hub asks of the real one, in memory, and how that says no."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

# token → (user, role); the user "guest" may write nowhere, though the token says so.
TOKENS = {"hf_writer": ("alice", "write"), "hf_reader": ("alice", "read"), "hf_guest": ("guest", "write")}


@dataclass
class Repository:
    """Commits, oldest first: name → content of all files."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    @property
    def latest(self) -> str:
        return list(self.commits)[-1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.latest if revision == "main" else revision
        return (sha, self.commits[sha]) if sha in self.commits else None


class HubServer(ThreadingHTTPServer):
    """Serves until `close`. `log` has (method, path) of each request; `drop` says which requests lose their connection.

    Attributes:
        drop: pattern of "METHOD path", or None; matching requests are read in part, then the connection is cut.
        twists: patterns of "METHOD path", and what is changed of such answers: "headers", "values" of an object, or all
            "data".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.drop: str | None = None
        self.twists: list[tuple[str, dict[str, Any]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self) -> list[str]:
        """ "METHOD path" of each request since this was last asked."""
        seen, self.log = [f"{method} {path}" for method, path in self.log], []
        return seen

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The newest files of a repository."""
        found = self.repositories[repo_id].at("main")
        assert found is not None
        return found[1]

    def use_here(self, patch: pytest.MonkeyPatch, cache: Path, token: str | None = None) -> None:
        """Make this process use this hub and no other, with a cache and a token of its own."""
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        own = {"ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
        for name, value in (own | {"HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}).items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        if self.server.drop and re.search(self.server.drop, f"{self.command} {path}"):
            self.connection.close()
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, *found.groups(), body=body)
        self._no(404, f"no such route: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        line = f"{self.command} {unquote(urlsplit(self.path).path)}"
        twist = next((change for pattern, change in self.server.twists if re.fullmatch(pattern, line)), {})
        if "values" in twist:
            content = content | twist["values"]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = twist["data"].encode("latin-1") if "data" in twist else data
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()} | twist.get("headers", {})
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _no(self, status: int, message: str, code: str = "") -> None:
        self._answer({"error": message}, status, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))

    def _user(self) -> tuple[str, str] | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _may_write(self, owner: str) -> bool:
        user = self._user()
        return user is not None and user == ("alice", "write") and owner in ("alice", "org")

    def _repository(self, repo_id: str, *, write: bool = False) -> Repository | None:
        """The repository, or None after having said no."""
        repository, user = self.server.repositories.get(repo_id), self._user()
        if self.headers.get("Authorization") and user is None:
            self._no(401, "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and (user is None or user[0] != "alice")):
            self._no(401 if user is None else 404, "Repository not found", "RepoNotFound")
        elif write and not self._may_write(repo_id.partition("/")[0]):
            self._no(403, "You don't have the rights to write there")
        else:
            return repository
        return None

    def _files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision, or None after having said no."""
        if (repository := self._repository(repo_id)) is None:
            return None
        if (found := repository.at(revision)) is None:
            self._no(404, "Invalid rev id", "RevisionNotFound")
        return found

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or (self._user() or ("",))[0]
        if not self._may_write(owner):
            return self._no(403, "You don't have the rights to create a model under this namespace")
        repo_id = f"{owner}/{asked['name']}"
        if repo_id in self.server.repositories:
            return self._no(409, "You already created this model repo")
        private = asked.get("private", asked.get("visibility") == "private")
        self.server.repositories[repo_id] = Repository(bool(private))
        self._answer({"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def validate(self, body: bytes) -> None:
        self._answer({"errors": [], "warnings": []})

    def info(self, repo_id: str, revision: str | None, body: bytes) -> None:
        if found := self._files(repo_id, revision or "main"):
            private, siblings = self.server.repositories[repo_id].private, [{"rfilename": name} for name in found[1]]
            self._answer({"id": repo_id, "sha": found[0], "private": private, "siblings": siblings, "tags": []})

    def authorise(self, repo_id: str, write: str | None, body: bytes) -> None:
        if self._repository(repo_id, write=bool(write)) is not None:
            self._answer({})

    def tree(self, repo_id: str, revision: str, body: bytes) -> None:
        if found := self._files(repo_id, revision):
            files = found[1].items()
            self._answer([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files])

    def preupload(self, repo_id: str, body: bytes) -> None:
        if self._repository(repo_id, write=True) is None:
            return
        files = []
        for each in json.loads(body)["files"]:
            mode = "lfs" if each["path"].endswith(".safetensors") else "regular"
            files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False})
        self._answer({"files": files})

    def batch(self, repo_id: str, body: bytes) -> None:
        if self._repository(repo_id, write=True) is None:
            return
        objects = json.loads(body)["objects"]
        for each in objects:
            if each["oid"] not in self.server.objects:
                each["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
        self._answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def store(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._answer(b"")

    def commit(self, repo_id: str, body: bytes) -> None:
        if (repository := self._repository(repo_id, write=True)) is None:
            return
        files = dict(self.server.files(repo_id))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if value.get("parentCommit", repository.latest) != repository.latest:
                return self._no(412, "A commit has happened since")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = hashlib.sha1(body + str(len(repository.commits)).encode()).hexdigest()
        repository.commits[sha] = files
        self._answer({"commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, repo_id: str, revision: str, name: str, body: bytes) -> None:
        if (found := self._files(repo_id, revision)) is None:
            return
        sha, files = found
        if name not in files:
            return self._no(404, "Entry not found", "EntryNotFound")
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        self._answer(files[name], ETag=etag, X_Repo_Commit=sha)


_REPO = r"([\w.-]+/[\w.-]+?)"
_ROUTES = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_REPO}/auth-check(/write)?", _Handler.authorise),
    (rf"GET /api/models/{_REPO}(?:/revision/([\w.-]+))?", _Handler.info),
    (rf"GET /api/models/{_REPO}/tree/([\w.-]+)/?", _Handler.tree),
    (rf"POST /api/models/{_REPO}/preupload/main", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/main", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(\w+)", _Handler.store),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/([\w.-]+)/(.+)", _Handler.resolve),
]

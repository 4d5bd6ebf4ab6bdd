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

# token → user; only hf_writer may write, to alice/ and org/.
TOKENS = {"hf_writer": "alice", "hf_guest": "guest"}


class Refusal(Exception):
    """Status, message and code of an answer that says no."""


@dataclass
class Repository:
    """Commits, oldest first: name → content of all files."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    @property
    def latest(self) -> str:
        return list(self.commits)[-1]


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
        repository = self.repositories[repo_id]
        return repository.commits[repository.latest]

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
        line, headers = f"{self.command} {path}", {}
        self.server.log.append((self.command, path))
        if self.server.drop and re.search(self.server.drop, line):
            self.connection.close()
            self.close_connection = True
            return
        body, status = self.rfile.read(int(self.headers.get("Content-Length") or 0)), 200
        try:
            ways = ((method, re.fullmatch(pattern, line)) for pattern, method in _ROUTES)
            method, found = next(way for way in ways if way[1])
            content = method(self, *found.groups(), body=body)
            if isinstance(content, tuple):
                content, headers = content
        except Refusal as no:
            status, message, code = no.args
            content, headers = {"error": message}, {"X-Error-Message": message, "X-Error-Code": code}
        twist = next((change for pattern, change in self.server.twists if re.fullmatch(pattern, line)), {})
        if "values" in twist:
            content |= twist["values"]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = twist["data"].encode("latin-1") if "data" in twist else data
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers | twist.get("headers", {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _check_writer(self, owner: str) -> None:
        if self._token != "hf_writer" or owner not in ("alice", "org"):
            raise Refusal(403, "You don't have the rights to write there", "")

    def _repository(self, repo_id: str, *, write: bool = False) -> Repository:
        repository, user = self.server.repositories.get(repo_id), TOKENS.get(self._token)
        if self._token and user is None:
            raise Refusal(401, "Invalid credentials in Authorization header", "")
        if repository is None or (repository.private and user != "alice"):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self._check_writer(repo_id.partition("/")[0])
        return repository

    def _files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a revision."""
        repository = self._repository(repo_id)
        sha = repository.latest if revision == "main" else revision
        if sha not in repository.commits:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return sha, repository.commits[sha]

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        owner = asked.get("organization") or TOKENS.get(self._token, "")
        self._check_writer(owner)
        repo_id = f"{owner}/{asked['name']}"
        private = asked.get("private", asked.get("visibility") == "private")
        self.server.repositories[repo_id] = Repository(bool(private))
        return {"url": f"{self.server.url}/{repo_id}", "name": repo_id}

    def validate(self, body: bytes) -> Any:
        return {"errors": [], "warnings": []}

    def info(self, repo_id: str, revision: str | None, body: bytes) -> Any:
        sha, files = self._files(repo_id, revision or "main")
        private, siblings = self.server.repositories[repo_id].private, [{"rfilename": name} for name in files]
        return {"id": repo_id, "sha": sha, "private": private, "siblings": siblings, "tags": []}

    def authorise(self, repo_id: str, write: str | None, body: bytes) -> Any:
        self._repository(repo_id, write=bool(write))
        return {}

    def tree(self, repo_id: str, revision: str, body: bytes) -> Any:
        files = self._files(repo_id, revision)[1].items()
        return [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files]

    def preupload(self, repo_id: str, body: bytes) -> Any:
        self._repository(repo_id, write=True)
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}

    def batch(self, repo_id: str, body: bytes) -> Any:
        self._repository(repo_id, write=True)
        objects = json.loads(body)["objects"]
        for file in objects:
            if file["oid"] not in self.server.objects:
                file["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{file['oid']}"}}
        return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def store(self, oid: str, body: bytes) -> Any:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        return b""

    def commit(self, repo_id: str, body: bytes) -> Any:
        repository, files = self._repository(repo_id, write=True), dict(self.server.files(repo_id))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if value.get("parentCommit", repository.latest) != repository.latest:
                raise Refusal(412, "A commit has happened since", "")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = hashlib.sha1(body + str(len(repository.commits)).encode()).hexdigest()
        repository.commits[sha] = files
        return {"commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}", "commitOid": sha}

    def resolve(self, repo_id: str, revision: str, name: str, body: bytes) -> Any:
        sha, files = self._files(repo_id, revision)
        if name not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return files[name], {"ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"', "X-Repo-Commit": sha}


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

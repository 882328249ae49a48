"""A server on 127.0.0.1 that speaks as much of the Hub's HTTP API as huggingface_hub needs.

As on the Hub, `resolve` answers with a redirect: a relative one for small files, and one to a CDN
for large ones (safetensors, bin). The server knows nothing of clpstream, and keeps a record.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Model:
    """Directories by commit, commits by branch or tag, and who may have them."""

    commits: dict[str, Path]
    refs: dict[str, str]
    gated: bool = False
    token: str | None = None  # without it, the model does not exist


@dataclass
class Hub:
    """`models` by id.

    fetched: (model, file) whose content was sent. tokens: those sent to the API. stalled: names of
    files of which only the first byte is sent. status: other than 200, what every request gets.
    """

    models: dict[str, Model] = field(default_factory=dict)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    stalled: frozenset[str] = frozenset()
    status: int = 200

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, directory: Path, **settings: Any) -> str:
        """Serve a directory as the main branch of a model; returns its commit."""
        commit = hashlib.sha1(f"{name} {directory}".encode()).hexdigest()
        self.models[name] = Model({commit: directory}, {"main": commit}, **settings)
        return commit

    def files_of(self, name: str) -> list[str]:
        """The files of a model that were fetched."""
        return sorted(file for model, file in self.fetched if model == name)

    def wait(self) -> None:
        """Until the server is stopped."""
        self._closing.wait(60)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hub.status != 200:
            return self._send(self.hub.status, b"")
        path = unquote(urlsplit(self.path).path)
        for prefix, answer in (
            ("/api/resolve-cache/models/", self._content),
            ("/cdn/", self._content),
            ("/api/models/", self._api),
        ):
            if path.startswith(prefix):
                return answer(path.removeprefix(prefix))
        if "/resolve/" in path:
            return self._resolve(path.removeprefix("/"))
        return self._send(404, b"")

    def _api(self, path: str) -> None:
        """`NAME`, `NAME/revision/REVISION` or `NAME/tree/COMMIT`."""
        for action in ("revision", "tree"):
            if f"/{action}/" in path:
                name, revision = path.split(f"/{action}/")
                break
        else:
            name, action, revision = path, "revision", "main"
        found = self._find(name, revision)
        if found is None:
            return
        commit, directory = found
        files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}
        if action == "tree":
            content: Any = [_entry(file, files[file]) for file in sorted(files)]
        else:
            siblings = [{"rfilename": file} for file in sorted(files)]
            content = {"_id": "0", "id": name, "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        """`NAME/resolve/REVISION/FILE`: says what the file is, and where."""
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self._find(name, revision)
        if found is None:
            return None
        commit, directory = found
        headers = {"X-Repo-Commit": commit}
        if self.hub.models[name].gated:
            return self._fail(403, "GatedRepo", headers)
        if not (directory / file).is_file():
            return self._fail(404, "EntryNotFound", headers)
        data = (directory / file).read_bytes()
        place = f"{name}/{commit}/{file}"
        if _is_large(file):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"{self.hub.endpoint}/cdn/{place}"
            return self._send(302, b"", headers)
        headers["ETag"] = f'"{_git_id(data)}"'
        headers["Location"] = f"/api/resolve-cache/models/{place}"
        return self._send(307, b"", headers)

    def _content(self, path: str) -> None:
        """`NAME/COMMIT/FILE`: the file itself."""
        name, commit, file = next(
            (name, *path[len(name) + 1 :].split("/", 1))
            for name in self.hub.models
            if path.startswith(f"{name}/")
        )
        data = (self.hub.models[name].commits[commit] / file).read_bytes()
        headers = {"ETag": f'"{_git_id(data)}"', "X-Repo-Commit": commit}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.command == "GET":
            self.hub.fetched.append((name, f"{file} {part[0]}" if part else file))
        if part and self.command == "GET":
            return self._send(206, data[int(part[1]) : int(part[2]) + 1], headers)
        return self._send(200, data, headers, stall=file in self.hub.stalled)

    def _find(self, name: str, revision: str) -> tuple[str, Path] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.tokens.add(token)
        model = self.hub.models.get(name)
        if model is None or (model.token is not None and token != model.token):
            self._fail(401, "RepoNotFound")
            return None
        commit = model.refs.get(revision, revision)
        if commit not in model.commits:
            self._fail(404, "RevisionNotFound")
            return None
        return commit, model.commits[commit]

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {**(headers or {}), "X-Error-Code": code})

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        stall: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if stall:
            self.wfile.write(data[:1])
            self.hub.wait()
        self.wfile.write(data)


def _entry(name: str, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    entry = {"type": "file", "path": name, "size": len(data), "oid": _git_id(data)}
    if _is_large(name):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return entry


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

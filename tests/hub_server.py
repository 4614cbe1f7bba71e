"""The read side of the Hugging Face Hub, in threads of the test's own process.

Just enough for `datasets.load_dataset` (streaming or not, any revision) and
`HfApi().dataset_info`. Standard library only; nothing is written to disk. It has no write side,
no LFS, no xet and no paging of listings. Clients belong in a subprocess with `hub_environment`,
because huggingface_hub reads its variables once, when it is imported.

    with HubServer() as hub:
        hub.put("argilla/10Kprompts-mini", {"data/train-00000-of-00001.parquet": data})
        subprocess.run(..., env={**os.environ, **hub_environment(hub, tmp_path)})
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2024-01-01T00:00:00.000Z"
Tree = dict[str, bytes]


class RefusedError(Exception):
    """The Hub says no: a status, a message, and the code by which clients tell what is missing."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Repository:
    """A dataset repository: every commit's whole tree, oldest first; the last one is `main`."""

    commits: dict[str, Tree] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Add or replace `files`; returns the new commit's sha, which is never an earlier one."""
        parent, tree = next(reversed(self.commits.items()), ("", {}))
        tree = {**tree, **files}
        sha = sha1(f"{parent} {sorted((path, sha1(data)) for path, data in tree.items())}".encode())
        self.commits[sha] = tree
        return sha

    def at(self, revision: str) -> tuple[str, Tree]:
        """The commit that `revision` names: `main`, or a sha or its first seven digits or more."""
        shas = list(self.commits)
        if revision in ("main", "refs/heads/main"):
            return shas[-1], self.commits[shas[-1]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for sha in shas:
                if sha.startswith(revision):
                    return sha, self.commits[sha]
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class HubServer:
    """A Hub on a free port of 127.0.0.1, open to all or only to those who show `token`."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        #: (method, path with query) of every request so far
        self.requests: list[tuple[str, str]] = []
        self.repositories: dict[str, Repository] = {}
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self})
        )
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        serve = self._http.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def put(self, repository: str, files: Mapping[str, bytes]) -> str:
        """One commit that adds or replaces `files` (path to content); returns its sha."""
        return self.repositories.setdefault(repository, Repository()).commit(files)

    def find(self, repository: str, authorization: str | None) -> Repository:
        """The repository, for a caller who may see it.

        Raises:
            RefusedError: 401 for a missing or wrong token, 404 for an unknown repository.
        """
        if self.token is not None and authorization != f"Bearer {self.token}":
            raise RefusedError(401, "Invalid username or password.")
        if repository not in self.repositories:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return self.repositories[repository]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are kept in `HubServer.requests`, not printed."""

    def answer(self) -> None:
        """Answer one request of any method."""
        self.hub.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            match parts:
                case ["api", "datasets", owner, name, *rest]:
                    self.send_json(self.describe(f"{owner}/{name}", rest, url.query, body))
                case ["datasets", owner, name, "resolve", revision, *path]:
                    self.send_file(f"{owner}/{name}", revision, "/".join(path))
                case _:
                    raise RefusedError(404, f"no route {self.command} {url.path}")
        except RefusedError as refusal:
            self.send(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)

    do_GET = do_HEAD = do_POST = answer  # noqa: N815

    def describe(self, repository: str, rest: list[str], query: str, body: bytes) -> Any:
        """What the JSON API says of a repository, of a folder or of some of its paths."""
        found = self.hub.find(repository, self.headers.get("Authorization"))
        operation, revision, *path = [*rest, *("info", "main")[len(rest) :]]
        sha, tree = found.at(revision)
        match operation:
            case "info" | "revision":
                return info(repository, sha, tree)
            case "tree":
                recursive = parse_qs(query).get("recursive", [""])[0].lower() in ("true", "1")
                return listing(tree, "/".join(path), recursive)
            case "paths-info":
                is_json = "json" in self.headers.get("Content-Type", "")
                asked = json.loads(body) if is_json else parse_qs(body.decode())
                return [entry for path in asked["paths"] for entry in entries(tree, path)]
            case "refs":
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": sha}
                return {"branches": [main], "tags": [], "converts": [], "pullRequests": []}
        raise RefusedError(404, f"no route {self.command} {self.path}")

    def send_file(self, repository: str, revision: str, path: str) -> None:
        """A file's bytes, or the one range of them that was asked for."""
        found = self.hub.find(repository, self.headers.get("Authorization"))
        sha, tree = found.at(revision)
        if path not in tree:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        data = tree[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid(data)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, data, headers, "application/octet-stream")
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= end:
            self.send(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self.send(206, data[start:end], headers, "application/octet-stream")

    def send_json(self, value: Any) -> None:
        """Status 200 and `value`."""
        self.send(200, json.dumps(value).encode(), {})

    def send(
        self, status: int, body: bytes, headers: Mapping[str, str], kind: str = "application/json"
    ) -> None:
        """A whole reply; its body is left out when only the head was asked for."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def sha1(data: bytes) -> str:
    """SHA-1, as git names things."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def oid(data: bytes) -> str:
    """Git's name for a file of this content."""
    return sha1(b"blob %d\0" % len(data) + data)


def info(repository: str, sha: str, tree: Tree) -> dict[str, Any]:
    """The JSON behind `HfApi.dataset_info`."""
    return {
        "_id": sha1(repository.encode())[:24],
        "id": repository,
        "author": repository.partition("/")[0],
        "sha": sha,
        "private": False,
        "gated": False,
        "disabled": False,
        "lastModified": DATE,
        "createdAt": DATE,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path} for path in sorted(tree)],
    }


def entries(tree: Tree, path: str) -> list[dict[str, Any]]:
    """The description of one path: a file, a folder, or nothing."""
    path = path.strip("/")
    if path in tree:
        data = tree[path]
        return [{"type": "file", "oid": oid(data), "size": len(data), "path": path}]
    if any(file.startswith(f"{path}/") for file in tree):
        return [{"type": "directory", "oid": sha1(path.encode()), "size": 0, "path": path}]
    return []


def listing(tree: Tree, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders in `folder`, and below it if `recursive`."""
    prefix = f"{folder}/" if folder else ""
    paths: set[str] = set()
    for file in tree:
        if file.startswith(prefix):
            steps = file.removeprefix(prefix).split("/")
            depth = len(steps) if recursive else 1
            paths.update(prefix + "/".join(steps[: n + 1]) for n in range(depth))
    if folder and not paths:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    return [entry for path in sorted(paths) for entry in entries(tree, path)]


def hub_environment(hub: HubServer, home: Path) -> dict[str, str]:
    """The variables that make a subprocess use `hub`, with its caches under `home`.

    A fresh `home` per test matters: with a warm cache a refused token is not noticed.
    """
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token or "",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        # Empty is off: importing datasets without its bytecode takes seconds.
        "PYTHONDONTWRITEBYTECODE": "",
    }

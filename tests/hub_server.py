"""A Hugging Face Hub, in threads of the test's own process: datasets are read, made and changed.

Enough for `datasets.load_dataset` (streaming or not, any revision), for `HfApi` to create
repositories and commit to them over LFS, and for every such request to go wrong on demand. There
is no xet, no branch but `main`, and no other kind of repository. Standard library only; nothing
is written to disk. huggingface_hub reads its variables once, when it is imported: clients belong
in a subprocess with `hub_environment`, unless they name the endpoint themselves.

    with HubServer() as hub:
        hub.put("argilla/10Kprompts-mini", {"data/train-00000-of-00001.parquet": data})
        hub.fail("POST .*/commit/", status=500, applied=True)
        subprocess.run(..., env={**os.environ, **hub_environment(hub, tmp_path)})
"""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.hub_store import (
    GITATTRIBUTES,
    RefusedError,
    Repository,
    described,
    entries,
    info,
    listing,
    preupload,
    sha256,
)

#: These are known to every server: both see what OWNER has, the first one may change it.
WRITE_TOKEN = "hf_write_4f1c2a9b"
READ_TOKEN = "hf_read"
OWNER = "me"
NOT_SIGNED_IN = "Invalid username or password."
UNKNOWN = "Invalid credentials in Authorization header"


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path?query" matches."""

    pattern: str
    times: int
    skip: int
    status: int | None
    headers: Mapping[str, str]
    body: bytes
    #: the request is carried out first, and only its answer is lost
    applied: bool
    cut: bool
    delay_s: float
    hits: int = 0


@dataclass
class Exchange:
    """One request; `up` and `down` are the bytes of the two bodies, status 0 is a cut."""

    method: str
    path: str
    up: int
    authorization: str | None
    status: int = 0
    down: int = 0


@dataclass
class Reply:
    """An answer, before it is sent."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"


class HubServer:
    """A Hub on a free port of 127.0.0.1.

    Without `token` public repositories are shown to all, whatever token they show. With `token`
    nothing is shown to those who show none or an unknown one; and it may change what OWNER has, as
    WRITE_TOKEN may.
    """

    def __init__(self, token: str | None = None, *, page_size: int = 1000) -> None:
        self.token = token
        self.page_size = page_size
        self.exchanges: list[Exchange] = []
        self.repositories: dict[str, Repository] = {}
        #: what LFS holds, by SHA-256
        self.stored: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        serve = self._http.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._http.hang_up()

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path with query) of every request so far."""
        return [(one.method, one.path) for one in self.exchanges]

    def put(self, repository: str, files: Mapping[str, bytes], *, private: bool = False) -> str:
        """One commit that adds or replaces `files` (path to content); returns its sha."""
        with self.lock:
            found = self.repositories.setdefault(repository, Repository(private))
            return found.commit(files)

    def fail(
        self,
        pattern: str,
        *,
        times: int = 1,
        skip: int = 0,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b'{"error": "injected"}',
        applied: bool = False,
        cut: bool = False,
        delay_s: float = 0.0,
    ) -> Fault:
        """The next `times` requests that match, after `skip`, go wrong as `Fault` says."""
        fault = Fault(pattern, times, skip, status, headers or {}, body, applied, cut, delay_s)
        self.faults.append(fault)
        return fault

    def fault(self, request: str) -> Fault | None:
        """The first fault that is due for a request, counted as used."""
        with self.lock:
            for fault in self.faults:
                if fault.times > fault.hits and re.search(fault.pattern, request):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.hits += 1
                    return fault
        return None

    def find(self, repository: str, authorization: str | None, *, write: bool) -> Repository:
        """The repository, for a caller who may see it, or with `write` change it.

        Raises:
            RefusedError: 401 for a missing or wrong token, 404 for an unknown repository, 403 for
                one that may only be read.
        """
        token = self.signed_in(authorization)
        found = self.repositories.get(repository)
        owned = token in self.known_tokens() and repository.startswith(f"{OWNER}/")
        if found is None or (found.private and not owned):
            if token is None:
                raise RefusedError(401, NOT_SIGNED_IN, "RepoNotFound")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        if write:
            self.allow_writing(token, repository)
        return found

    def known_tokens(self) -> set[str]:
        """All tokens that are somebody's."""
        return {WRITE_TOKEN, READ_TOKEN} | ({self.token} if self.token else set())

    def signed_in(self, authorization: str | None) -> str | None:
        """The caller's token. Raises: RefusedError if this Hub wants one and does not know it."""
        token = authorization.removeprefix("Bearer ") if authorization else None
        if self.token is not None and token not in self.known_tokens():
            raise RefusedError(401, UNKNOWN if token else NOT_SIGNED_IN)
        return token

    def allow_writing(self, token: str | None, repository: str) -> None:
        """Raises: RefusedError unless the token may make and change this repository."""
        if token not in self.known_tokens():
            raise RefusedError(401, UNKNOWN if token else NOT_SIGNED_IN)
        if token == READ_TOKEN or not repository.startswith(f"{OWNER}/"):
            raise RefusedError(403, f"This token may not write to {repository}.")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a new connection, which is remembered."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection has ended."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all connections: a client keeps them, and would find this Hub alive over them."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are kept in `HubServer.exchanges`, not printed."""

    def answer(self) -> None:
        """Answer one request of any method, or let it go wrong."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization")
        exchange = Exchange(self.command, self.path, len(body), authorization)
        self.hub.exchanges.append(exchange)
        fault = self.hub.fault(f"{self.command} {self.path}")
        if fault and fault.delay_s:
            time.sleep(fault.delay_s)
        failing = fault is not None and (fault.cut or fault.status is not None)
        reply = None
        if fault is None or not failing or fault.applied:
            reply = self.reply(body)
        if fault and fault.cut:
            self.cut()
            return
        if fault and fault.status is not None:
            reply = Reply(fault.status, fault.body, fault.headers)
        assert reply is not None
        exchange.status, exchange.down = reply.status, len(reply.body)
        self.send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def reply(self, body: bytes) -> Reply:
        """What the Hub answers when nothing goes wrong."""
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        with self.hub.lock:
            try:
                return self.route(parts, url.query, body)
            except RefusedError as refusal:
                text = json.dumps({"error": str(refusal)}).encode()
                return Reply(refusal.status, text, refusal.headers)

    def route(self, parts: list[str], query: str, body: bytes) -> Reply:
        """One of the Hub's addresses. Raises: RefusedError."""
        match self.command, parts:
            case "PUT", ["lfs", name]:
                return self.store(name, body)
            case "POST", ["lfs", name, "verify"]:
                return Reply(200 if name in self.hub.stored else 404, b"{}")
            case "POST", ["api", "validate-yaml"]:
                return plain({"errors": [], "warnings": []})
            case "POST", ["api", "repos", "create"]:
                return self.create(json.loads(body))
            case _, ["api", "datasets", owner, name, *rest]:
                return self.describe(f"{owner}/{name}", rest, query, body)
            case "POST", ["datasets", owner, git, "info", "lfs", "objects", "batch"]:
                return self.batch(f"{owner}/{git.removesuffix('.git')}", json.loads(body))
            case "GET" | "HEAD", ["datasets", owner, name, "resolve", revision, *path]:
                return self.file(f"{owner}/{name}", revision, "/".join(path))
        raise RefusedError(404, f"no route {self.command} {self.path}")

    def repository(self, name: str, *, write: bool = False) -> Repository:
        """The repository, if this request's token allows it."""
        return self.hub.find(name, self.headers.get("Authorization"), write=write)

    def create(self, asked: Mapping[str, Any]) -> Reply:
        """A new repository, private or public."""
        token = self.hub.signed_in(self.headers.get("Authorization"))
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        self.hub.allow_writing(token, name)
        if name in self.hub.repositories:
            raise RefusedError(409, "You already created this dataset repo")
        private = asked.get("visibility") == "private"
        self.hub.put(name, {".gitattributes": GITATTRIBUTES}, private=private)
        return plain({"url": f"{self.hub.endpoint}/datasets/{name}", "name": name})

    def describe(self, name: str, rest: list[str], query: str, body: bytes) -> Reply:
        """What the JSON API says of a repository, of a folder or of some of its paths."""
        if rest[:1] == ["auth-check"]:
            self.repository(name, write=rest[1:] == ["write"])
            return plain({})
        operation, revision, *path = [*rest, *("info", "main")[len(rest) :]]
        found = self.repository(name, write=operation in ("preupload", "commit"))
        sha, tree = found.at(revision)
        match operation:
            case "info" | "revision":
                told = info(name, sha, found)
                expanded = parse_qs(query).get("expand", [])
                kept = {"_id", "id", *expanded} if expanded else told.keys()
                return plain({key: value for key, value in told.items() if key in kept})
            case "tree":
                recursive = parse_qs(query).get("recursive", [""])[0].lower() in ("true", "1")
                return self.page(listing(tree, "/".join(path), recursive), query)
            case "paths-info":
                is_json = "json" in self.headers.get("Content-Type", "")
                asked = json.loads(body) if is_json else parse_qs(body.decode())
                return plain([entry for path in asked["paths"] for entry in entries(tree, path)])
            case "refs":
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": sha}
                return plain({"branches": [main], "tags": [], "converts": [], "pullRequests": []})
            case "preupload":
                return plain({"commitOid": sha, "files": preupload(tree, json.loads(body))})
            case "commit":
                lines = [json.loads(line) for line in body.splitlines()]
                new = found.apply(lines, self.hub.stored)
                url = f"{self.hub.endpoint}/datasets/{name}/commit/{new}"
                return plain({"success": True, "commitOid": new, "commitUrl": url})
        raise RefusedError(404, f"no route {self.command} {self.path}")

    def page(self, items: list[dict[str, Any]], query: str) -> Reply:
        """Part of a listing, with the address of the next part."""
        asked = parse_qs(query)
        start = int(asked.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        if end >= len(items):
            return plain(items[start:end])
        following = urlencode({**asked, "cursor": end}, doseq=True)
        address = f"{self.hub.endpoint}{urlsplit(self.path).path}?{following}"
        return plain(items[start:end], {"Link": f'<{address}>; rel="next"'})

    def batch(self, name: str, asked: Mapping[str, Any]) -> Reply:
        """Where files are to be uploaded to; those that LFS has already are to be left out."""
        self.repository(name, write=True)
        objects = []
        for item in asked["objects"]:
            address = f"{self.hub.endpoint}/lfs/{item['oid']}"
            actions = {
                "upload": {"href": f"{address}?signature=hidden"},
                "verify": {"href": f"{address}/verify"},
            }
            wanted = {} if item["oid"] in self.hub.stored else {"actions": actions}
            objects.append({"oid": item["oid"], "size": item["size"], **wanted})
        return plain({"transfer": "basic", "objects": objects})

    def store(self, name: str, body: bytes) -> Reply:
        """Keep a file in LFS."""
        if sha256(body) != name:
            return Reply(400, b"BadDigest", kind="text/plain")
        self.hub.stored[name] = body
        return Reply(200, b"")

    def file(self, name: str, revision: str, path: str) -> Reply:
        """A file's bytes, or the one range of them that was asked for."""
        sha, tree = self.repository(name).at(revision)
        if path not in tree:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        data, entry = tree[path], described(path, tree[path])
        tag = entry.get("lfs", entry)["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return Reply(200, data, headers, "application/octet-stream")
        start, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= end:
            return Reply(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Reply(206, data[start:end], headers, "application/octet-stream")

    def send(self, reply: Reply) -> None:
        """A whole reply; its body is left out when only the head was asked for."""
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.kind, **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def cut(self) -> None:
        """Reset the connection, so that the client knows at once."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def plain(value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """Status 200 and `value` as JSON."""
    return Reply(200, json.dumps(value).encode(), headers or {})


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

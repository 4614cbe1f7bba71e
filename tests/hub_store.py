"""What the tests' Hub keeps: repositories of whole trees, and how git and LFS name files.

No HTTP in here. Everything is in memory.
"""

import base64
import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

DATE = "2024-01-01T00:00:00.000Z"
LFS_PATTERNS = ("*.parquet", "*.arrow", "*.bin", "*.gz", "*.zip", "*.zst")
#: Every new repository of the Hub begins with such a file.
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS
).encode()
LARGEST_REGULAR = 10 * 1024 * 1024
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

    private: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    #: sha to the commit's message
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], delete: Iterable[str] = ()) -> str:
        """Delete, then add or replace `files`; returns a sha that no earlier commit has."""
        parent, tree = next(reversed(self.commits.items()), ("", {}))
        tree = {path: data for path, data in tree.items() if path not in set(delete)} | {**files}
        sha = sha1(f"{parent} {sorted((path, sha1(data)) for path, data in tree.items())}".encode())
        self.commits[sha] = tree
        return sha

    @property
    def head(self) -> str:
        """The newest commit."""
        return next(reversed(self.commits))

    @property
    def files(self) -> Tree:
        """The newest commit's tree."""
        return self.commits[self.head]

    def at(self, revision: str) -> tuple[str, Tree]:
        """The commit that `revision` names: `main`, or a sha or its first seven digits or more."""
        if revision in ("main", "refs/heads/main"):
            return self.head, self.files
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for sha in self.commits:
                if sha.startswith(revision):
                    return sha, self.commits[sha]
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def apply(self, lines: list[dict[str, Any]], stored: Mapping[str, bytes]) -> str:
        """The commit that the lines of a request describe; `stored` is LFS by SHA-256."""
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", self.head) != self.head:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files, gone = {}, []
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in stored:
                    files[value["path"]] = stored[value["oid"]]
                case "lfsFile":
                    raise RefusedError(400, f"LFS pointer to no file: {value['path']}")
                case "deletedFile" if value["path"] in self.files:
                    gone.append(value["path"])
                case "deletedFile":
                    raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        sha = self.commit(files, gone)
        self.messages[sha] = header["summary"]
        return sha


def sha1(data: bytes) -> str:
    """SHA-1, as git names things."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    """SHA-256, as LFS names things."""
    return hashlib.sha256(data).hexdigest()


def oid(data: bytes) -> str:
    """Git's name for a file of this content."""
    return sha1(b"blob %d\0" % len(data) + data)


def is_lfs(path: str, size: int) -> bool:
    """Whether a file goes to LFS; git has only a pointer to it then."""
    return size > LARGEST_REGULAR or any(fnmatch.fnmatch(path, one) for one in LFS_PATTERNS)


def described(path: str, data: bytes) -> dict[str, Any]:
    """A file, as listings show it."""
    size = len(data)
    if not is_lfs(path, size):
        return {"type": "file", "oid": oid(data), "size": size, "path": path}
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {size}\n"
    ).encode()
    lfs = {"oid": sha256(data), "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "oid": oid(pointer), "size": size, "path": path, "lfs": lfs}


def preupload(tree: Tree, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How each file is to be uploaded, or that .gitignore keeps it out."""
    ignore = asked.get("gitIgnore") or tree.get(".gitignore", b"").decode()
    patterns = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    answers = []
    for file in asked["files"]:
        path, name = file["path"], PurePosixPath(file["path"]).name
        answer = {
            "path": path,
            "uploadMode": "lfs" if is_lfs(path, file["size"]) else "regular",
            "shouldIgnore": any(fnmatch.fnmatch(name, pattern) for pattern in patterns),
        }
        if path in tree:
            known = described(path, tree[path])
            answer["oid"] = known.get("lfs", known)["oid"]
        answers.append(answer)
    return answers


def info(repository: str, sha: str, found: Repository) -> dict[str, Any]:
    """The JSON behind `HfApi.dataset_info`."""
    return {
        "_id": sha1(repository.encode())[:24],
        "id": repository,
        "author": repository.partition("/")[0],
        "sha": sha,
        "private": found.private,
        "gated": False,
        "disabled": False,
        "lastModified": DATE,
        "createdAt": DATE,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path} for path in sorted(found.commits[sha])],
    }


def entries(tree: Tree, path: str) -> list[dict[str, Any]]:
    """The description of one path: a file, a folder, or nothing."""
    path = path.strip("/")
    if path in tree:
        return [described(path, tree[path])]
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

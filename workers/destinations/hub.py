"""A dataset repository of the Hugging Face Hub: its files, and commits on a known parent.

It knows nothing of shards, rows or the ledger. Each commit names its parent, so of two writers
one gets `DestinationAway` and looks again; a commit whose answer was lost is found by looking,
too. Nothing is read from or written to a local cache. huggingface_hub is imported at the first
call (see `hub_client`), because that takes most of a second.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.errors import DestinationAway, DestinationRefused

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

CARD = "README.md"
TYPE = "dataset"
#: Files that one request asks about.
PATHS_PER_REQUEST = 500
#: Sent in place of the repository's own .gitignore: a file that matches it would be left out of a
#: commit without a word. It may not be empty, or the repository's own would count after all.
IGNORE_NOTHING = "# nothing is ignored\n"


@dataclass(frozen=True, slots=True)
class Blob:
    """A file as the Hub describes it: bytes, git's name, and the SHA-256 if it is in LFS."""

    size: int
    oid: str
    sha256: str | None = None

    def may_hold(self, size: int, sha256: str) -> bool:
        """Whether it is as large, and the same as far as the Hub tells: of LFS, it tells all."""
        return self.size == size and self.sha256 in (None, sha256)

    def holds(self, content: bytes) -> bool:
        """Whether the file has exactly this content."""
        if self.size != len(content):
            return False
        if self.sha256 is not None:
            return self.sha256 == hashlib.sha256(content).hexdigest()
        named = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return self.oid == named.hexdigest()


class HubRepository:
    """One dataset repository, as its owner `token` may see and change it.

    Every request is made once and takes at most `timeout_s` between two bytes. All methods raise

        DestinationRefused: token, repository or content will not be taken as they are.
        DestinationAway: the Hub is unreachable or busy, or the repository has changed meanwhile.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool,
        token: str,
        endpoint: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.repo_id = repo_id
        self.private = private
        self.timeout_s = timeout_s
        self._token = token
        self._endpoint = endpoint

    def head(self, *, create: bool = False) -> str:
        """The sha of `main`; with `create`, of a repository that is made if it is not there."""
        from workers.destinations.hub_client import RepositoryMissing

        try:
            return self._head()
        except RepositoryMissing:
            if not create:
                raise
        try:
            with self._asking() as api:
                api.create_repo(self.repo_id, private=self.private, repo_type=TYPE)
        except DestinationAway as away:
            try:  # another process was faster, or the answer was lost: then it is there by now
                return self._head()
            except RepositoryMissing:
                raise away from None
        return self._head()

    def find(self) -> str | None:
        """The sha of `main`; None if there is no such repository."""
        from workers.destinations.hub_client import RepositoryMissing

        try:
            return self._head()
        except RepositoryMissing:
            return None

    def check_writable(self) -> None:
        """Raises: DestinationRefused if the token may read the repository and not write to it."""
        with self._asking() as api:
            api.auth_check(self.repo_id, repo_type=TYPE, write=True)

    def paths(self, revision: str) -> list[str]:
        """All files of a revision."""
        with self._asking() as api:
            return api.list_repo_files(self.repo_id, revision=revision, repo_type=TYPE)

    def existing(self, paths: Sequence[str], revision: str) -> dict[str, Blob]:
        """Those of these files that a revision has."""
        from huggingface_hub.hf_api import RepoFile

        found: dict[str, Blob] = {}
        for start in range(0, len(paths), PATHS_PER_REQUEST):
            asked = list(paths[start : start + PATHS_PER_REQUEST])
            with self._asking() as api:
                for entry in api.get_paths_info(
                    self.repo_id, asked, revision=revision, repo_type=TYPE
                ):
                    if isinstance(entry, RepoFile):
                        sha256 = entry.lfs.sha256 if entry.lfs else None
                        found[entry.path] = Blob(entry.size, entry.blob_id, sha256)
        return found

    def card(self, revision: str) -> str:
        """The text of a revision's README.md; "" if there is none."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        from workers.destinations.hub_client import FileMissing

        try:
            with self._asking() as api:
                url = hf_hub_url(
                    self.repo_id, CARD, repo_type=TYPE, revision=revision, endpoint=api.endpoint
                )
                response = get_session().get(url, headers=build_hf_headers(token=self._token))
        except FileMissing:
            return ""
        try:
            return response.content.decode()
        except UnicodeDecodeError as exc:
            raise DestinationRefused(
                f"hub.repo_id: {CARD} of {self.repo_id} is not UTF-8; accepted: UTF-8 text"
            ) from exc

    def commit(
        self,
        parent: str,
        *,
        add: Iterable[tuple[str, bytes]] = (),
        delete: Sequence[str] = (),
        message: str,
    ) -> str:
        """One commit on `parent`, the sha of `main`; returns the new sha.

        `add` is (path, content), taken one by one: content that goes to LFS is uploaded and let go
        before the next is asked for. If nothing would change, there is no commit, and the sha is
        that of `main`. A path of `delete` that is not there any more raises `DestinationAway`.
        """
        from huggingface_hub import CommitOperationDelete

        files: list[CommitOperationAdd] = []
        for path, content in add:
            files.append(self._upload(path, content))
            del content  # or it would stay until the next one is made
        deletions = [CommitOperationDelete(path, is_folder=False) for path in delete]
        with self._asking() as api:
            return api.create_commit(
                self.repo_id,
                [*deletions, *files],
                commit_message=message,
                parent_commit=parent,
                repo_type=TYPE,
            ).oid

    def _upload(self, path: str, content: bytes) -> "CommitOperationAdd":
        """Bring a file's content to LFS, unless the Hub keeps files of its kind in git."""
        from huggingface_hub import CommitOperationAdd

        # A stream is never uploaded by xet, whatever HF_HUB_DISABLE_XET was at the import.
        file = CommitOperationAdd(path, io.BytesIO(content))
        with self._asking() as api:
            api.preupload_lfs_files(
                self.repo_id, [file], repo_type=TYPE, gitignore_content=IGNORE_NOTHING
            )
        return file

    def _head(self) -> str:
        with self._asking() as api:
            found = api.dataset_info(self.repo_id, expand=["sha", "private"])
        if self.private and found.private is False:
            raise DestinationRefused(
                f"hub.private: true, but {self.repo_id} can be read by all; accepted: false, or a "
                "repository that is private"
            )
        if not found.sha:
            raise DestinationAway(f"{self.repo_id} has no commit yet")
        return found.sha

    @contextmanager
    def _asking(self) -> Iterator["HfApi"]:
        """huggingface_hub, with our timeouts and errors. Only its own calls belong in here."""
        from huggingface_hub import HfApi

        from workers.destinations.hub_client import Caller, asking

        with asking(Caller(self.repo_id, self._token, self.timeout_s)):
            yield HfApi(self._endpoint, self._token, library_name="prefmill")

"""A repository of the Hub under everything that can go wrong with it, against a Hub of our own."""

import io
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, hub_environment
from workers.destinations.hub import HubRepository
from workers.errors import DestinationAway, DestinationRefused, PrefmillError

NAME = "me/pairs"
CARD = """---
configs:
- config_name: default
  data_files: data/default/*.parquet
dataset_info:
- config_name: default
  features:
  - {name: text, dtype: string}
  - {name: note, dtype: string}
---
"""
#: What each method asks the Hub for.
COMMIT_REQUESTS = (
    "POST .*/preupload/",
    "POST .*/objects/batch",
    "PUT /lfs/",
    "POST /lfs/.*/verify",
    "POST /api/validate-yaml",
    "POST .*/commit/main",
)
REQUESTS: dict[str, Callable[[HubRepository, str], object]] = {
    r"GET /api/datasets/me/pairs\?": lambda repository, _: repository.head(),
    "GET .*/tree/": lambda repository, head: repository.paths(head),
    "POST .*/paths-info/": lambda repository, head: repository.existing(["README.md"], head),
    "GET .*/resolve/": lambda repository, head: repository.card(head),
    **dict.fromkeys(
        COMMIT_REQUESTS, lambda repository, head: commit(repository, head, {"a.parquet": b"a"})
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def repository(hub: HubServer) -> HubRepository:
    return at(hub)


def at(
    hub: HubServer, name: str = NAME, token: str = WRITE_TOKEN, timeout_s: float = 5.0
) -> HubRepository:
    return HubRepository(
        name, private=True, token=token, endpoint=hub.endpoint, timeout_s=timeout_s
    )


def commit(repository: HubRepository, parent: str, files: dict[str, bytes]) -> str:
    added = {"README.md": CARD.encode(), **files}
    return repository.commit(parent, add=added.items(), message="Rows 1-2")


def told(error: PrefmillError) -> str:
    """All that a log with a traceback would show of an error."""
    return "".join(traceback.format_exception(error))


def shard(*texts: str) -> bytes:
    buffer = io.BytesIO()
    notes = pa.nulls(len(texts), pa.string())
    pq.write_table(pa.table({"text": list(texts), "note": notes}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_made_once_and_as_private_as_it_was_asked_for(
    hub: HubServer, private: bool
) -> None:
    repository = HubRepository(NAME, private=private, token=WRITE_TOKEN, endpoint=hub.endpoint)
    head = repository.head(create=True)
    assert repository.head(create=True) == repository.head() == head
    assert hub.repositories[NAME].private is private
    assert hub.requests.count(("POST", "/api/repos/create")) == 1


def test_a_missing_repository_is_refused_and_not_made_by_itself(
    hub: HubServer, repository: HubRepository
) -> None:
    with pytest.raises(DestinationRefused, match=r"me/pairs.*accepted: a dataset repository"):
        repository.head()
    assert hub.repositories == {}


def test_many_creators_at_once_find_the_same_repository(hub: HubServer) -> None:
    barrier = threading.Barrier(8)

    def create(_: int) -> str:
        repository = at(hub)
        barrier.wait()
        return repository.head(create=True)

    with ThreadPoolExecutor(8) as pool:
        heads = set(pool.map(create, range(8)))
    assert heads == {hub.repositories[NAME].head}
    assert len(hub.repositories[NAME].commits) == 1


def test_a_lost_answer_to_a_creation_does_no_harm(
    hub: HubServer, repository: HubRepository
) -> None:
    hub.fail("POST /api/repos/create", cut=True, applied=True)
    assert repository.head(create=True) == hub.repositories[NAME].head


def test_a_creation_in_conflict_with_another_one_is_tried_once(
    hub: HubServer, repository: HubRepository
) -> None:
    busy = b"Cannot create repo: another conflicting operation is in progress"
    hub.fail("POST /api/repos/create", times=100, status=409, body=busy)
    with pytest.raises(DestinationAway, match="409"):
        repository.head(create=True)
    assert hub.requests.count(("POST", "/api/repos/create")) == 1


def test_a_commit_is_on_its_parent_and_large_files_go_to_lfs(
    hub: HubServer, repository: HubRepository
) -> None:
    first = repository.head(create=True)
    data = os.urandom(200_000)
    head = commit(repository, first, {"data/a.parquet": data})
    assert head == repository.head() != first
    assert repository.card(head) == CARD
    assert repository.card(first) == ""
    assert repository.paths(head) == [".gitattributes", "README.md", "data/a.parquet"]
    assert repository.paths(first) == [".gitattributes"]
    assert hub.repositories[NAME].messages[head] == "Rows 1-2"
    assert hub.repositories[NAME].files["data/a.parquet"] == data
    sent = {one.method: one.up for one in hub.exchanges}
    assert sent["PUT"] == len(data)
    assert max(one.up for one in hub.exchanges if one.method == "POST") < 5_000


def test_existing_files_hold_their_content_and_no_other(repository: HubRepository) -> None:
    files = {"data/a.parquet": b"lfs", "notes.txt": b"git"}
    head = commit(repository, repository.head(create=True), files)
    blobs = repository.existing([*files, "data", "data/b.parquet"], head)
    assert blobs.keys() == files.keys()
    for path, content in files.items():
        assert blobs[path].holds(content)
        assert not blobs[path].holds(content.upper())
        assert not blobs[path].holds(content + b"\n")
    assert repository.existing([], head) == {}


def test_hundreds_of_files_are_listed_and_looked_for_in_parts() -> None:
    with HubServer(page_size=300) as hub:
        files = {f"data/{number:06d}.parquet": b"%d" % number for number in range(1_100)}
        head = hub.put(NAME, files)
        repository = at(hub)
        assert repository.paths(head) == list(files)
        assert repository.existing(list(files), head).keys() == files.keys()
        assert sum("paths-info" in path for _, path in hub.requests) == 3


def test_a_stale_parent_changes_nothing(hub: HubServer, repository: HubRepository) -> None:
    parent = repository.head(create=True)
    foreign = hub.put(NAME, {"mine.txt": b"somebody else's"})
    with pytest.raises(DestinationAway, match="412"):
        commit(repository, parent, {"a.parquet": b"a"})
    assert repository.head() == foreign


@pytest.mark.parametrize("answer", [{"cut": True}, {"status": 500}, {"status": 504}])
def test_a_commit_whose_answer_was_lost_is_there(
    hub: HubServer, repository: HubRepository, answer: dict[str, Any]
) -> None:
    parent = repository.head(create=True)
    hub.fail("POST .*/commit/main", applied=True, **answer)
    with pytest.raises(DestinationAway):
        commit(repository, parent, {"a.parquet": b"a"})
    head = repository.head()
    assert repository.existing(["a.parquet"], head)["a.parquet"].holds(b"a")
    assert commit(repository, parent, {"a.parquet": b"a"}) == head, "nothing was left to commit"


def test_after_a_failed_commit_files_are_not_uploaded_again(
    hub: HubServer, repository: HubRepository, capfd: pytest.CaptureFixture[str]
) -> None:
    parent = repository.head(create=True)
    hub.fail("POST .*/commit/main", status=503)
    with pytest.raises(DestinationAway):
        commit(repository, parent, {"a.parquet": b"a"})
    commit(repository, parent, {"a.parquet": b"a"})
    assert [method for method, _ in hub.requests].count("PUT") == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    "fault",
    [{"status": status} for status in (408, 409, 412, 429, 500, 502, 503)] + [{"cut": True}],
    ids=lambda fault: str(fault.get("status", "cut")),
)
def test_every_request_is_made_once_and_its_failure_is_passing(
    hub: HubServer, repository: HubRepository, request_: str, fault: dict[str, Any]
) -> None:
    head = repository.head(create=True)
    injected = hub.fail(request_, times=100, **fault)
    started = time.monotonic()
    with pytest.raises(DestinationAway) as away:
        REQUESTS[request_](repository, head)
    assert injected.hits == 1
    assert time.monotonic() - started < 2
    assert NAME in str(away.value)
    assert WRITE_TOKEN not in told(away.value)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "99999"}, 600),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=12;t=55'}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("request_", ["GET /api/datasets/", "POST .*/preupload/", "PUT /lfs/"])
def test_a_busy_hub_says_when_to_come_back_and_is_not_waited_for(
    hub: HubServer,
    repository: HubRepository,
    request_: str,
    headers: dict[str, str],
    wait_s: float | None,
) -> None:
    repository.head(create=True)
    hub.fail(request_, status=429, headers=headers)
    with pytest.raises(DestinationAway) as away:
        commit(repository, repository.head(), {"a.parquet": b"a"})
    assert away.value.retry_after_s == wait_s


@pytest.mark.parametrize(("ahead_s", "wait_s"), [(300, 300), (9_999, 600), (-300, 0)])
def test_a_busy_hub_may_name_a_date(
    hub: HubServer, repository: HubRepository, ahead_s: int, wait_s: int
) -> None:
    date = formatdate(time.time() + ahead_s, usegmt=True)
    hub.fail("GET", status=503, headers={"Retry-After": date})
    with pytest.raises(DestinationAway) as away:
        repository.head()
    assert away.value.retry_after_s == pytest.approx(wait_s, abs=3)


@pytest.mark.parametrize(
    ("name", "token", "expected"),
    [
        ("me/pairs", "hf_nobody", "HF_TOKEN: .*me/pairs.*401.*accepted: a token with write access"),
        ("me/pairs", READ_TOKEN, "HF_TOKEN: .*me/pairs.*403.*accepted: a token with write access"),
        ("me/new", READ_TOKEN, "HF_TOKEN: .*me/new.*403"),
        ("else/public", WRITE_TOKEN, "HF_TOKEN: .*else/public.*403"),
        ("else/hidden", WRITE_TOKEN, "HF_TOKEN: .*else/hidden.*403"),
        ("no//name", WRITE_TOKEN, "hub.repo_id: .*accepted: owner/name"),
    ],
)
def test_a_token_that_may_not_write_is_named_and_never_shown(
    hub: HubServer, name: str, token: str, expected: str
) -> None:
    hub.put("me/pairs", {"README.md": b""})
    hub.put("else/public", {"README.md": b""})
    hub.put("else/hidden", {"README.md": b""}, private=True)
    repository = HubRepository(name, private=False, token=token, endpoint=hub.endpoint)
    with pytest.raises(DestinationRefused, match=expected) as refused:
        commit(repository, repository.head(create=True), {"a.parquet": b"a"})
    assert token not in told(refused.value)
    assert token not in repr(repository)


def test_rows_that_are_to_be_private_go_to_no_public_repository(hub: HubServer) -> None:
    hub.put("me/pairs", {"README.md": b""})
    private = HubRepository("me/pairs", private=True, token=WRITE_TOKEN, endpoint=hub.endpoint)
    with pytest.raises(DestinationRefused, match=r"hub.private: true.*me/pairs.*accepted: false"):
        private.head(create=True)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_repository_that_was_taken_away_is_named(
    hub: HubServer, repository: HubRepository, request_: str
) -> None:
    head = repository.head(create=True)
    hub.fail(request_, status=404, headers={"X-Error-Code": "RepoNotFound"})
    expected = DestinationAway if "/lfs/" in request_ else DestinationRefused
    with pytest.raises(expected, match="me/pairs"):
        REQUESTS[request_](repository, head)


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_the_hub_will_never_take_is_refused_in_its_own_words(
    hub: HubServer, repository: HubRepository, request_: str
) -> None:
    head = repository.head(create=True)
    body = b'{"errors": [{"message": "storage quota exceeded, hf_write_4f1c2a9b"}]}'
    hub.fail(request_, status=400, body=body)
    expected = DestinationAway if "/lfs/" in request_ else DestinationRefused
    with pytest.raises(expected, match=r"400 storage quota exceeded, \*\*\*") as refused:
        REQUESTS[request_](repository, head)
    assert WRITE_TOKEN not in told(refused.value)


def test_a_refused_upload_shows_no_signed_address(
    hub: HubServer, repository: HubRepository
) -> None:
    head = repository.head(create=True)
    hub.fail("PUT", status=403, body=b"<Error>Request has expired</Error>")
    with pytest.raises(DestinationAway, match="the upload failed: 403") as away:
        commit(repository, head, {"a.parquet": b"a"})
    assert "signature" not in told(away.value)


@pytest.mark.parametrize(
    "request_",
    [name for name in REQUESTS if not name.startswith(("PUT", "POST /lfs/", "GET .*/resolve"))],
)
def test_a_page_of_somebody_else_is_passing(
    hub: HubServer, repository: HubRepository, request_: str
) -> None:
    head = repository.head(create=True)
    hub.fail(request_, status=200, body=b"<html>Sign in to this network</html>")
    with pytest.raises(DestinationAway, match="its answer cannot be read"):
        REQUESTS[request_](repository, head)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"files": []}',
        b'{"objects": [{"oid": "0", "size": 1}]}',
        b'{"objects": [{"oid": "0", "size": 1, "error": {"code": 500, "message": "sorry"}}]}',
        b'{"objects": [{"oid": "0", "size": 1, "actions": {"upload": {"href": "http://x"}}}]}',
    ],
)
@pytest.mark.parametrize("request_", ["POST .*/preupload/", "POST .*/objects/batch"])
def test_a_reply_of_another_shape_is_passing(
    hub: HubServer, repository: HubRepository, request_: str, body: bytes
) -> None:
    head = repository.head(create=True)
    hub.fail(request_, status=200, body=body)
    with pytest.raises(DestinationAway, match="me/pairs"):
        commit(repository, head, {"a.parquet": b"a"})


def test_files_are_deleted_and_replaced_in_one_commit(
    hub: HubServer, repository: HubRepository
) -> None:
    head = commit(repository, repository.head(create=True), {"a.parquet": b"a", "b.txt": b"b"})
    new = {"c.parquet": b"c", "README.md": b"---\nlicense: mit\n---\n"}
    head = repository.commit(
        head, add=new.items(), delete=["a.parquet", "b.txt"], message="Compacted"
    )
    del hub.repositories[NAME].files[".gitattributes"]
    assert hub.repositories[NAME].files == new
    assert len(hub.repositories[NAME].commits) == 3


def test_a_file_to_delete_that_is_gone_is_worth_another_look(
    hub: HubServer, repository: HubRepository
) -> None:
    head = commit(repository, repository.head(create=True), {"a.parquet": b"a"})
    with pytest.raises(DestinationAway, match="404"):
        repository.commit(head, delete=["a.parquet", "gone.parquet"], message="Deleted")
    assert repository.head() == head


def test_a_revision_that_is_gone_is_worth_another_look(repository: HubRepository) -> None:
    repository.head(create=True)
    for look in (repository.paths, repository.card):
        with pytest.raises(DestinationAway, match="404"):
            look("0" * 40)


def test_a_gitignore_keeps_no_file_out(hub: HubServer, repository: HubRepository) -> None:
    head = hub.put(NAME, {".gitignore": b"*.parquet\n*.md\n"})
    head = commit(repository, head, {"a.parquet": b"a"})
    assert {"a.parquet", "README.md"} < set(repository.paths(head))


def test_a_card_that_is_no_text_is_refused(hub: HubServer, repository: HubRepository) -> None:
    with pytest.raises(DestinationRefused, match=r"README.md of me/pairs is not UTF-8"):
        repository.card(hub.put(NAME, {"README.md": b"\xff"}))


def test_errors_of_the_one_who_brings_the_files_stay_his(repository: HubRepository) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        yield "a.parquet", b"a"
        raise ValueError("the ledger is gone")

    with pytest.raises(ValueError, match="the ledger is gone"):
        repository.commit(repository.head(create=True), add=files(), message="Rows")


def test_a_hub_that_is_down_is_away_at_once() -> None:
    with HubServer() as other:
        repository = at(other)
        head = repository.head(create=True)
    started = time.monotonic()
    for request in REQUESTS.values():
        with pytest.raises(DestinationAway, match="Error"):
            request(repository, head)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_hub_that_never_answers_is_away_in_time(hub: HubServer, request_: str) -> None:
    head = at(hub).head(create=True)
    hub.fail(request_, times=100, delay_s=1.5)
    started = time.monotonic()
    with pytest.raises(DestinationAway, match="ReadTimeout"):
        REQUESTS[request_](at(hub, timeout_s=0.2), head)
    assert time.monotonic() - started < 1.4


@pytest.mark.parametrize("endpoint", ["hub.local", "ftp://hub.local", "http://[::1"])
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    repository = HubRepository(NAME, private=True, token=WRITE_TOKEN, endpoint=endpoint)
    with pytest.raises(DestinationRefused, match="HF_ENDPOINT"):
        repository.head()


@pytest.mark.parametrize("token", ["", "hf_two\nlines", "hf_ümlaut"])
def test_a_token_that_no_header_can_carry_is_refused(hub: HubServer, token: str) -> None:
    with pytest.raises(DestinationRefused, match=r"HF_TOKEN: .*accepted: printable ASCII") as error:
        at(hub, token=token).head()
    assert "hf_" not in told(error.value)
    assert hub.requests == []


def client(hub: HubServer, home: Path, program: str, **environment: str) -> str:
    """What a program of its own prints; it fails if anything comes to stderr."""
    variables = {**os.environ, **hub_environment(hub, home), **environment}
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"):
        del variables[name]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


COMMITS = """
import sys, tracemalloc
from workers.destinations.hub import HubRepository

repository = HubRepository("me/pairs", private=True, token="hf_write_4f1c2a9b")
assert "huggingface_hub" not in sys.modules
head = repository.head(create=True)
tracemalloc.start()
files = ((f"data/{n}.parquet", b"%d" % n * 2_000_000) for n in range(8))
head = repository.commit(head, add=files, message="Rows")
repository.card(head)
assert tracemalloc.get_traced_memory()[1] < 9_000_000, tracemalloc.get_traced_memory()
print(head)
"""


def test_a_commit_needs_no_home_no_xet_and_the_memory_of_few_files(
    hub: HubServer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    head = client(hub, home, COMMITS)
    assert head.strip() == hub.repositories[NAME].head
    assert len(hub.stored) == 8
    assert not any("xet" in path for _, path in hub.requests)
    assert not home.exists()


def test_without_leave_to_go_online_the_variable_is_named(hub: HubServer, tmp_path: Path) -> None:
    program = """
from workers.destinations.hub import HubRepository
from workers.errors import DestinationRefused
try:
    HubRepository("me/pairs", private=True, token="hf_write_4f1c2a9b").head()
except DestinationRefused as error:
    print(error)
"""
    assert client(hub, tmp_path, program, HF_HUB_OFFLINE="1").startswith("HF_HUB_OFFLINE: ")


def test_appended_shards_load_whole_and_streamed_in_the_process_that_delivered_them(
    hub: HubServer, tmp_path: Path
) -> None:
    program = """
import json, os, sys
from datasets import disable_progress_bars, load_dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from workers.destinations.hub import HubRepository

def shown(**options):
    rows = load_dataset("me/pairs", split="train", **options)
    return [row["text"] for row in rows]

disable_progress_bars()
repository = HubRepository("me/pairs", private=True, token="hf_secret")
head = repository.head(create=True)
read = []
for number in range(2):
    path = f"data/default/train-{number:06d}.parquet"
    files = {"README.md": open("README.md", "rb").read(), path: open(f"{number}", "rb").read()}
    head = repository.commit(head, add=files.items(), message="Rows")
    read += [shown(), shown(streaming=True)]
try:
    HfApi().dataset_info("no/such")
except RepositoryNotFoundError:
    print(json.dumps(read))
"""
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "0").write_bytes(shard("a", "b"))
    (tmp_path / "1").write_bytes(shard("c"))
    with HubServer(token="hf_secret") as closed:
        folder = f"import os; os.chdir({str(tmp_path)!r})\n"
        printed = client(closed, tmp_path / "home", folder + program)
        assert printed.strip() == '[["a", "b"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]'
        assert not any("xet" in path for _, path in closed.requests)

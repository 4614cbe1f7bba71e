"""A dataset of the Hugging Face Hub, row by row, and its next revisions as they come.

It is taken to grow at its end only: after a new revision reading goes on with the row that follows
the last one. Whatever `datasets` and `huggingface_hub` raise ends here as a `SourceError`; both are
imported late, because that is slow and most sources need neither.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from producer.memory import TOO_MUCH, bounded
from producer.prompts import Found, Item, Position, brief, item
from producer.tabular import open_parquet, rows_of, storable
from workers.errors import SourceError

if TYPE_CHECKING:
    from workers.recipe import Source

log = logging.getLogger(__name__)

#: Seconds that the Hub may take to name a dataset's newest revision.
HUB_TIMEOUT_S = 30.0


def hub_items(
    source: "Source", position: Position, *, follow: bool, idle_s: float
) -> Generator[Item, None, None]:
    """The dataset's rows after `position`; with `follow` also those of every later revision.

    Raises:
        SourceError: the dataset cannot be read; with `follow` only until it was read once.
    """
    number, read_once = int(position.get("row", 0)), False
    known = revision = _newest(source)
    while True:
        try:
            for row in _hub_rows(source, revision, number):
                number += 1
                read_once = True
                where = f"hub {source.hub} {source.split} {number}"
                at = {"row": number, "revision": revision}
                yield item(row, source.columns, where, at)
            read_once = True
        except SourceError as error:
            if not (follow and read_once):
                raise
            log.warning("source_unreadable", extra={"error": str(error), "row": number})
            known = None
        if not follow:
            return
        known = revision = yield from _next_revision(source, known, idle_s)


def _next_revision(
    source: "Source", known: str | None, idle_s: float
) -> Generator[None, None, str | None]:
    """Ask every `source.poll` seconds until the newest revision is another one than `known`."""
    while True:
        due = time.monotonic() + source.poll
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(idle_s, left))
            yield None
        try:
            revision = _newest(source)
        except SourceError as error:
            log.warning("source_not_polled", extra={"error": str(error)})
            continue
        if revision != known:
            return revision


def _newest(source: "Source") -> str | None:
    """The commit that the source's revision names now; None if the Hub is not to be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _asking(source):
        try:
            info = HfApi().dataset_info(
                str(source.hub), revision=source.revision, timeout=HUB_TIMEOUT_S
            )
        except OfflineModeIsEnabled:
            return None
    return info.sha


def _hub_rows(source: "Source", revision: str | None, start: int) -> Iterator[Found]:
    """The rows after the first `start` of one revision, without columns that JSON cannot hold."""
    with _asking(source):
        builder = _builder(source, revision)
    files = _parquet_files(builder, source)
    if files:
        yield from _parquet_rows(source, files, start)
        return
    with _asking(source), bounded():
        if source.streaming:
            dataset = builder.as_streaming_dataset(split=source.split)
        else:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split=source.split)
    if dataset.features is not None:
        name = f"{source.hub} ({source.split})"
        kept = storable(dataset.features.arrow_schema, source.columns, name)
        dataset = dataset.select_columns(kept)
    if not source.streaming and start >= len(dataset):
        return  # a Dataset, unlike an IterableDataset, cannot skip all of its rows
    with _asking(source), bounded():
        rows = iter(dataset.skip(start))
    while True:
        with _asking(source), bounded():
            row = next(rows, None)
        if row is None:
            return
        yield row


def _parquet_files(builder: Any, source: "Source") -> list[str]:
    """The split's files if all are Parquet on the Hub: they are read here.

    `datasets` would unpack whole row groups, however large.
    """
    files = [str(url) for url in (builder.config.data_files or {}).get(source.split, [])]
    ours = all(url.startswith("hf://") and url.endswith(".parquet") for url in files)
    return files if ours else []


def _parquet_rows(source: "Source", files: Sequence[str], start: int) -> Iterator[Found]:
    for url in files:
        with _asking(source):
            file = open_parquet(_opened(url, streaming=source.streaming))
        with file:
            rows = rows_of(file, source.columns, f"{source.hub} ({source.split})", start)
            start = max(0, start - file.metadata.num_rows)
            while True:
                with _asking(source):
                    row = next(rows, None)
                if row is None:
                    break
                yield row


def _opened(url: str, *, streaming: bool) -> Any:
    """A file of the Hub: there, or downloaded into the Hub's cache."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    hub = HfFileSystem(skip_instance_cache=True)
    if streaming:
        # What Arrow asks for is what is fetched: columns lie far apart, reading ahead is for none.
        return hub.open(url, "rb", cache_type="none")
    at: Any = hub.resolve_path(url)
    return hf_hub_download(
        at.repo_id, at.path_in_repo, repo_type=at.repo_type, revision=at.revision
    )


def _builder(source: "Source", revision: str | None) -> Any:
    """What `load_dataset` goes through, without its silent fall back to an older cached copy."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(
        str(source.hub), name=source.config, revision=revision or source.revision
    )
    if revision is not None and builder.hash != revision:
        raise ConnectionError(f"revision {revision} could not be read, only an older copy of it")
    return builder


def hub_count(source: "Source") -> int | None:
    """How many rows the split has, if the dataset says so.

    Raises:
        SourceError: the dataset cannot be asked.
    """
    with _asking(source):
        split = (_builder(source, None).info.splits or {}).get(source.split)
    return split.num_examples if split else None


@contextmanager
def _asking(source: "Source") -> Iterator[None]:
    """Whatever `datasets` and `huggingface_hub` raise, as one line that says what to do."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or httpx2

    foreign = (
        *(DatasetsError, HTTPError, pa.ArrowException),
        *(OSError, ValueError, RuntimeError, MemoryError),
    )
    try:
        yield
    except (*foreign, LookupError) as exc:
        dataset = f"{source.hub} (split {source.split})"
        raise SourceError(f"source.hub: {dataset}: {_advice(exc)}") from exc


def _advice(exc: BaseException) -> str:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if any(isinstance(one, MemoryError) for one in (exc, exc.__cause__, exc.__context__)):
        return TOO_MUCH
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if isinstance(exc, RevisionNotFoundError):
        return "there is no such revision; check source.revision"
    if isinstance(exc, RepositoryNotFoundError | DatasetNotFoundError) or status in (401, 403):
        return "not found or not allowed; check the name, and set HF_TOKEN to a token that reads it"
    if isinstance(exc, FileNotFoundError | ValueError | LookupError):
        return f"{brief(exc)}; check source.config, source.split and the dataset's files"
    return f"{brief(exc)}; check the network and HF_ENDPOINT, and start again"

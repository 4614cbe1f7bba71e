"""Argilla: one dataset in which people see judged prompts and answer.

Everything here may be done twice. Records are upserted by the prompt's key; the dataset is made in
steps of which each may be done already, so it comes out the same when a process was killed half-way
or two of them are at it. A dataset of another form is not touched. Knows no ledger, and never tries
again: the caller does.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from workers.annotation import Record, rating_question, rationale_question, slot_of
from workers.curation import Answer
from workers.destinations.argilla_api import ArgillaApi, detail
from workers.destinations.argilla_batches import Item, batches
from workers.destinations.argilla_form import (
    FIELDS,
    GUIDELINES,
    METADATA,
    QUESTIONS,
    difference,
    form,
    takes,
)
from workers.errors import DestinationAway, DestinationRefused

_UNFIT = frozenset({400, 413, 422})
# argilla-server 2.8.0 stores a batch and then fails to index it (500, with this text) as long as
# one of its records was discarded by somebody who had filled in nothing.
_STORED_NOT_INDEXED = "'NoneType' object has no attribute 'items'"
# Argilla's own client cannot list the workspaces of a server on which one has another name.
_READABLE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class _Dataset:
    """The published dataset: its questions' ids by their names, and the metadata that it takes."""

    id: str
    questions: Mapping[str, str]
    metadata: frozenset[str]


class ArgillaDataset:
    """A dataset at an Argilla server for records of so many `generations`.

    `timeout_s` bounds each wait for the server, in seconds; `hf_token` is shown to Spaces alone.

    Every method raises DestinationAway when the server cannot be reached, is busy or broken, and
    DestinationRefused when it will never take what is sent: by this URL, with this key, to this
    workspace and dataset.
    """

    def __init__(
        self,
        api_url: str,
        api_key: str,
        workspace: str,
        dataset: str,
        generations: int,
        *,
        hf_token: str | None = None,
        timeout_s: float = 60,
    ) -> None:
        self._api = ArgillaApi(api_url, api_key, hf_token, timeout_s)
        self._workspace, self._name = workspace, dataset
        self._generations = generations
        self._form = form(generations)
        self._dataset: _Dataset | None = None

    def __repr__(self) -> str:
        return f"ArgillaDataset({self._api.url}, {self._workspace}/{self._name})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._api.close()

    def exists(self) -> bool:
        """Whether the dataset is there already, and of our form; nothing is written."""
        found = self._found()
        if found is not None:
            self._compare(found["id"], whole=found["status"] != "draft")
        return found is not None

    def prepare(self) -> None:
        """Make the workspace and the dataset where they are missing; finish one that was begun.

        Nothing is written to a dataset whose fields or questions are not ours.
        """
        found = self._found() or self._made()
        draft = found["status"] == "draft"
        self._compare(found["id"], whole=not draft)
        for kind in (FIELDS, QUESTIONS, METADATA) if draft else (METADATA,):
            self._add_missing(found["id"], kind)
        if draft:
            self._api.call("PUT", f"datasets/{found['id']}/publish", tolerate={422})
        self._dataset = self._read()

    def log(self, records: Sequence[Record]) -> dict[str, str]:
        """Add or replace records; those that the server refuses come back, by id, with its reason.

        Answers of people stay. Of records with the same id the last one counts.
        """
        dataset = self._ready()
        unique = {record.id: record for record in records}
        refused: dict[str, str] = {}
        for batch in batches((one.id, _item(one, dataset)) for one in unique.values()):
            refused |= self._upsert(dataset.id, batch)
        if refused:
            self._dataset = self._read()  # raises if it is the dataset that is no longer ours
        return refused

    def answers(self, page: int = 250) -> Iterator[Answer]:
        """The submitted answers of people to our records: one a person and record.

        Drafts, discarded records and answers without any rating are left out. `page` is how many
        records a request reads.
        """
        path, offset = self._records, 0
        while True:
            params = {"include": "responses", "offset": offset, "limit": page}
            found = self._api.items(path, params)
            for item in found:
                if item.get("external_id") is not None:  # people may have added others
                    yield from _answers(item)
            offset += len(found)
            if len(found) < page:
                return

    @property
    def id(self) -> str:
        """The server's id of the dataset: another one of the same name has another."""
        return self._ready().id

    def count(self) -> int:
        """How many records the dataset holds."""
        reply = self._api.call("GET", self._records, params={"limit": 1})
        return int(self._api.value(reply)["total"])

    @property
    def _records(self) -> str:
        return f"datasets/{self._ready().id}/records"

    @property
    def _named(self) -> str:
        return f"dataset {self._name!r} of workspace {self._workspace!r} at {self._api.url}"

    def _ready(self) -> _Dataset:
        if self._dataset is None:
            self._dataset = self._read()
        return self._dataset

    def _read(self) -> _Dataset:
        """The dataset as it is now, if it is ours and published."""
        found = self._found()
        if found is None:
            raise DestinationRefused(f"there is no {self._named}; accepted: one that was delivered")
        if found["status"] == "draft":
            raise DestinationAway(f"the {self._named} is being made")
        self._compare(found["id"], whole=True)
        properties = self._parts(found["id"], METADATA)
        return _Dataset(
            id=found["id"],
            questions={part["name"]: part["id"] for part in self._parts(found["id"], QUESTIONS)},
            metadata=takes(properties, found["allow_extra_metadata"], self._generations),
        )

    def _found(self) -> dict[str, Any] | None:
        workspace = self._workspace_id()
        if workspace is None:
            return None
        params = {"workspace_id": workspace, "name": self._name}
        for dataset in self._api.items("me/datasets", params):
            if dataset["name"] == self._name and dataset["workspace_id"] == workspace:
                return dataset
        return None

    def _made(self) -> dict[str, Any]:
        workspace = self._workspace_id() or self._new_workspace()
        about = {"name": self._name, "workspace_id": workspace, "guidelines": GUIDELINES}
        made = self._api.call("POST", "datasets", about, tolerate={409})
        if made.is_success:
            return self._api.value(made)
        found = self._found()  # another process was faster
        if found is None:
            raise DestinationAway(f"the {self._named} was made and is gone")
        return found

    def _workspace_id(self) -> str | None:
        for workspace in self._api.items("me/workspaces"):
            if workspace["name"] == self._workspace:
                return str(workspace["id"])
        return None

    def _new_workspace(self) -> str:
        if not _READABLE.fullmatch(self._workspace):
            raise DestinationRefused(
                f"there is no workspace {self._workspace!r} at {self._api.url}, and none of that "
                "name is made; accepted: letters, digits, _ and -"
            )
        made = self._api.call("POST", "workspaces", {"name": self._workspace}, tolerate={403, 409})
        workspace = self._workspace_id()
        if workspace is None:
            raise DestinationRefused(
                f"the user of ARGILLA_API_KEY sees no workspace {self._workspace!r} at "
                f"{self._api.url} and may not make one ({detail(made)}); accepted: the key of an "
                "owner, or a workspace of which that user is an admin"
            )
        return workspace

    def _compare(self, dataset: str, *, whole: bool) -> None:
        for kind in (FIELDS, QUESTIONS):
            differs = difference(self._form[kind], self._parts(dataset, kind), whole=whole)
            if differs is not None:
                raise DestinationRefused(
                    f"the {self._named} has another form: {kind.removesuffix('s')} {differs}; "
                    "accepted: one that was made for the same number of generations, or another "
                    "name in argilla.dataset"
                )

    def _parts(self, dataset: str, kind: str) -> list[dict[str, Any]]:
        listed = "me/datasets" if kind == METADATA else "datasets"
        return self._api.items(f"{listed}/{dataset}/{kind}")

    def _add_missing(self, dataset: str, kind: str) -> None:
        have = {part["name"] for part in self._parts(dataset, kind)}
        # 409 and 422: another process made the part, or has published the dataset by now.
        tolerate = {403, 409, 422} if kind == METADATA else {409, 422}
        for part in self._form[kind]:
            if part["name"] not in have:
                self._api.call("POST", f"datasets/{dataset}/{kind}", part, tolerate=tolerate)

    def _upsert(self, dataset: str, batch: Sequence[Item]) -> dict[str, str]:
        """Send a batch, or its halves if it fails, so that one bad record stops no other."""
        body = b'{"items":[' + b",".join(item for _, item in batch) + b"]}"
        path = f"datasets/{dataset}/records/bulk"
        reply = self._api.call("PUT", path, body, tolerate=_UNFIT, unless=_STORED_NOT_INDEXED)
        if reply.is_success:
            self._api.value(reply)  # a proxy's page is no receipt
            return {}
        if len(batch) > 1:
            middle = len(batch) // 2
            return self._upsert(dataset, batch[:middle]) | self._upsert(dataset, batch[middle:])
        return {batch[0][0]: detail(reply)} if reply.is_client_error else {}


def _item(record: Record, dataset: _Dataset) -> bytes:
    suggested: dict[str, int | str] = {
        **{rating_question(slot): rating for slot, rating in record.ratings.items()},
        **{rationale_question(slot): reason for slot, reason in record.rationales.items()},
    }
    item = {
        "external_id": record.id,
        "fields": dict(record.fields),
        "metadata": {
            name: value for name, value in record.metadata.items() if name in dataset.metadata
        },
        "suggestions": [
            {
                "question_id": dataset.questions.get(name, name),
                "value": value,
                "agent": record.agent,
                "type": "model",
            }
            for name, value in suggested.items()
        ],
    }
    return json.dumps(item).encode()


def _answers(item: Mapping[str, Any]) -> Iterator[Answer]:
    """The answers to one record as the API lists it."""
    for response in item.get("responses") or []:
        if response["status"] != "submitted":
            continue
        given = [(slot_of(name), answer["value"]) for name, answer in response["values"].items()]
        ratings = {slot: rating for slot, rating in given if slot is not None}
        if ratings:
            yield Answer(item["external_id"], response["user_id"], ratings)

"""Judged prompts at a real Argilla server, and the answers of people who were asked there."""

import json
import subprocess
import sys
import threading
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.argilla_server import ADMIN_KEY, ANNOTATOR_KEYS, WORKSPACE, ArgillaServer
from workers.annotation import Record, field_names, record
from workers.curation import Answer
from workers.destinations.argilla import ArgillaDataset
from workers.destinations.argilla_api import access_headers
from workers.errors import DestinationAway, DestinationRefused
from workers.records import Generation, Judgement, Prompt, Rating, sha256

Open = Callable[..., ArgillaDataset]


@pytest.fixture
def name() -> str:
    """A dataset's name that no other test uses."""
    return f"preference-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def opened(argilla: ArgillaServer, name: str) -> Iterator[Open]:
    """Opens the test's dataset, by default as the owner and for two generations."""
    made: list[ArgillaDataset] = []

    def open_dataset(generations: int = 2, **changes: Any) -> ArgillaDataset:
        values = {
            "api_url": argilla.api_url,
            "api_key": argilla.api_key,
            "workspace": WORKSPACE,
            "dataset": name,
            **changes,
        }
        made.append(ArgillaDataset(generations=generations, **values))
        return made[-1]

    yield open_dataset
    for dataset in made:
        dataset.close()


@pytest.fixture
def dataset(opened: Open) -> ArgillaDataset:
    """An empty dataset for two generations."""
    made = opened()
    made.prepare()
    return made


def judged(instruction: str, *ratings: float, judges: tuple[str, ...] = ("judge",)) -> Record:
    """What people see of a prompt of which every judge gave these ratings."""
    slots = [(f"model-{i}", 0) for i in range(len(ratings))]
    made = record(
        sha256(instruction),
        Prompt(instruction),
        "paired",
        None,
        [Generation(name, f"org/{name}", f"{name} says {instruction}") for name, _ in slots],
        [
            Judgement(
                judge,
                f"org/{judge}",
                "overall-rating",
                tuple(Rating(rating, f"that is {rating}") for rating in ratings),
            )
            for judge in judges
        ],
        slots,
    )
    assert made is not None
    return made


def listed(server: ArgillaServer, name: str) -> dict[str, Any]:
    """The dataset of that name as the server has it, or nothing."""
    found = server.request("GET", f"me/datasets?name={name}")["items"]
    return found[0] if found else {}


def parts(server: ArgillaServer, name: str, kind: str) -> dict[str, Any]:
    """The dataset's fields or questions by name."""
    items = server.request("GET", f"datasets/{listed(server, name)['id']}/{kind}")["items"]
    return {item["name"]: item for item in items}


def stored(server: ArgillaServer, name: str) -> dict[str, Any]:
    """The dataset's records by our id, with suggestions and answers."""
    path = f"datasets/{listed(server, name)['id']}/records?limit=1000&include=suggestions,responses"
    return {item["external_id"]: item for item in server.request("GET", path)["items"]}


def suggestions(server: ArgillaServer, name: str, record_id: str) -> dict[str, Any]:
    """The value and author of each suggestion for a record, by the question's name."""
    questions = {one["id"]: name for name, one in parts(server, name, "questions").items()}
    return {
        questions[one["question_id"]]: (one["value"], one["agent"])
        for one in stored(server, name)[record_id]["suggestions"]
    }


def answer(
    server: ArgillaServer, name: str, record_id: str, key: str, status: str, *ratings: int
) -> str:
    """Answer a record as the user of `key`; returns the user's id."""
    values = {f"generations-{i}-rating": {"value": rating} for i, rating in enumerate(ratings)}
    server.request(
        "POST",
        f"records/{stored(server, name)[record_id]['id']}/responses",
        {"status": status, "values": values},
        key=key,
    )
    return str(server.request("GET", "me", key=key)["id"])


def discard_with_nothing(server: ArgillaServer, name: str, record_id: str, key: str) -> None:
    """Discard a record as the user of `key`, without values: the server stores it, and stumbles."""
    path = f"records/{stored(server, name)[record_id]['id']}/responses"
    with pytest.raises(urllib.error.HTTPError, match="500"):
        server.request("POST", path, {"status": "discarded", "values": None}, key=key)
    answers = stored(server, name)[record_id]["responses"]
    assert ("discarded", None) in [(one["status"], one["values"]) for one in answers]


def test_a_record_arrives_with_fields_suggestions_and_exact_ratings(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    sent = judged("Why is the sky blue?", 4.5, 1.25)
    assert dataset.log([sent]) == {}
    assert dataset.count() == 1
    found = stored(argilla, name)[sent.id]
    assert found["fields"] == {
        "id": sha256("Why is the sky blue?"),
        "instruction": "Why is the sky blue?",
        "generations-0": "model-0 says Why is the sky blue?",
        "generations-1": "model-1 says Why is the sky blue?",
    }
    assert suggestions(argilla, name, sent.id) == {
        "generations-0-rating": (5, "judge"),
        "generations-0-rationale": ("that is 4.5", "judge"),
        "generations-1-rating": (1, "judge"),
        "generations-1-rationale": ("that is 1.25", "judge"),
    }
    assert found["metadata"] == {
        "generations-0-model": "org/model-0",
        "generations-0-score": 4.5,
        "generations-1-model": "org/model-1",
        "generations-1-score": 1.25,
        "margin": 3.25,
        "state": "paired",
        "judges": "judge",
    }


@pytest.mark.parametrize("generations", [3, 5])
def test_there_is_a_field_and_two_questions_for_each_generation(
    argilla: ArgillaServer, opened: Open, name: str, generations: int
) -> None:
    dataset = opened(generations)
    dataset.prepare()
    assert list(parts(argilla, name, "fields")) == field_names(generations)
    questions = parts(argilla, name, "questions")
    assert list(questions) == [
        f"generations-{i}-{what}" for i in range(generations) for what in ("rating", "rationale")
    ]
    required = [name for name, question in questions.items() if question["required"]]
    assert required == ["generations-0-rating"]
    sent = judged("Name a prime.", *range(1, generations + 1))
    assert dataset.log([sent]) == {}
    assert len(suggestions(argilla, name, sent.id)) == 2 * generations


def test_a_record_logged_twice_is_one_with_the_newer_suggestions(
    argilla: ArgillaServer, dataset: ArgillaDataset, opened: Open, name: str
) -> None:
    first, second = judged("Once.", 2, 3), judged("Once.", 5, 1)
    dataset.log([first])
    again = opened()
    again.prepare()
    assert again.log([first, second, second]) == {}
    assert dataset.count() == 1
    assert suggestions(argilla, name, first.id)["generations-0-rating"] == (5, "judge")


def test_answers_of_people_survive_another_log(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    sent = judged("Kept?", 2, 3)
    dataset.log([sent])
    user = answer(argilla, name, sent.id, ANNOTATOR_KEYS[0], "submitted", 1, 5)
    dataset.log([sent])
    assert list(dataset.answers()) == [Answer(sent.id, user, {0: 1, 1: 5})]


def test_submitted_answers_of_all_people_are_read_and_nothing_else(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    sent = {what: judged(what, 2, 3) for what in ("both", "draft", "discarded", "partly", "none")}
    dataset.log(list(sent.values()))
    ada, ben = ANNOTATOR_KEYS
    first = answer(argilla, name, sent["both"].id, ada, "submitted", 4, 2)
    second = answer(argilla, name, sent["both"].id, ben, "submitted", 1, 5)
    answer(argilla, name, sent["draft"].id, ada, "draft", 3, 3)
    discard_with_nothing(argilla, name, sent["discarded"].id, ada)
    answer(argilla, name, sent["discarded"].id, ben, "discarded", 1, 1)
    answer(argilla, name, sent["partly"].id, ben, "submitted", 3)
    assert sorted(dataset.answers(page=2), key=lambda one: (one.record_id, one.user)) == sorted(
        [
            Answer(sent["both"].id, first, {0: 4, 1: 2}),
            Answer(sent["both"].id, second, {0: 1, 1: 5}),
            Answer(sent["partly"].id, second, {0: 3}),
        ],
        key=lambda one: (one.record_id, one.user),
    )


def test_a_record_that_was_discarded_with_nothing_stops_no_other(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    records = [judged(f"Number {i}.", 1, 2) for i in range(8)]
    dataset.log(records[:4])
    discard_with_nothing(argilla, name, records[2].id, ANNOTATOR_KEYS[0])
    newer = [judged(f"Number {i}.", 3, 2) for i in range(8)]
    assert dataset.log(newer) == {}
    assert dataset.count() == 8
    assert suggestions(argilla, name, newer[2].id)["generations-0-rating"] == (3, "judge")
    found = argilla.request("POST", f"datasets/{listed(argilla, name)['id']}/records/search", {})
    assert found["total"] == 8
    assert list(dataset.answers()) == []


def test_a_record_that_people_added_brings_no_answer(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    path = f"datasets/{listed(argilla, name)['id']}/records/bulk"
    fields = dict.fromkeys(field_names(2), "theirs")
    user = argilla.request("GET", "me")["id"]
    values = {"generations-0-rating": {"value": 3}}
    responses = [{"user_id": user, "status": "submitted", "values": values}]
    argilla.request("POST", path, {"items": [{"fields": fields, "responses": responses}]})
    assert dataset.count() == 1
    assert list(dataset.answers()) == []


@pytest.mark.parametrize(("there", "named"), [(3, "'generations-2'"), (1, "'generations-1'")])
def test_a_dataset_for_other_generations_is_refused_and_left_as_it_is(
    argilla: ArgillaServer, opened: Open, name: str, there: int, named: str
) -> None:
    opened(there).prepare()
    before = listed(argilla, name)
    other = opened()
    with pytest.raises(DestinationRefused, match=named):
        other.prepare()
    with pytest.raises(DestinationRefused, match=named):
        other.log([judged("Hello.", 1, 2)])
    with pytest.raises(DestinationRefused, match=named):
        list(other.answers())
    assert listed(argilla, name) == before
    assert stored(argilla, name) == {}


def test_a_rating_question_with_another_scale_is_refused_with_both_scales(
    argilla: ArgillaServer, opened: Open, name: str
) -> None:
    made = begun(argilla, name)
    for field in field_names(2):
        add(argilla, made, "fields", field, {"type": "text"})
    scale = [{"value": value} for value in (1, 2, 3)]
    add(argilla, made, "questions", "generations-0-rating", {"type": "rating", "options": scale})
    expected = "question 'generations-0-rating' is of type rating of 1, 2, 3, not rating of 1, 2, 3"
    with pytest.raises(DestinationRefused, match=expected):
        opened().prepare()
    assert listed(argilla, name)["status"] == "draft"
    assert list(parts(argilla, name, "questions")) == ["generations-0-rating"]


def begun(server: ArgillaServer, name: str) -> str:
    """The id of a new dataset without any part."""
    workspace = server.request("GET", "me/workspaces")["items"][0]["id"]
    made = server.request("POST", "datasets", {"name": name, "workspace_id": workspace})
    return str(made["id"])


def add(server: ArgillaServer, dataset: str, kind: str, name: str, settings: Any) -> None:
    """Add a field or question to a draft."""
    part = {"name": name, "title": name, "required": True, "settings": settings}
    server.request("POST", f"datasets/{dataset}/{kind}", part)


def test_a_dataset_that_a_killed_process_began_is_finished(
    argilla: ArgillaServer, opened: Open, name: str
) -> None:
    made = begun(argilla, name)
    for field in field_names(2)[:3]:
        add(argilla, made, "fields", field, {"type": "text"})
    with pytest.raises(DestinationAway, match="is being made"):
        opened().count()
    dataset = opened()
    dataset.prepare()
    assert list(parts(argilla, name, "fields")) == field_names(2)
    assert dataset.log([judged("Hello.", 1, 2)]) == {}
    assert (listed(argilla, name)["status"], dataset.count()) == ("ready", 1)


def test_a_draft_of_somebody_else_is_refused(
    argilla: ArgillaServer, opened: Open, name: str
) -> None:
    made = begun(argilla, name)
    add(argilla, made, "fields", "text", {"type": "text"})
    with pytest.raises(DestinationRefused, match=r"field 'text' \(text\) is not one of ours"):
        opened().prepare()
    assert list(parts(argilla, name, "fields")) == ["text"]


def test_processes_that_create_at_once_end_with_one_dataset(
    argilla: ArgillaServer, opened: Open, name: str
) -> None:
    datasets = [opened() for _ in range(4)]
    start = threading.Barrier(len(datasets))
    failed: list[Exception] = []

    def create(dataset: ArgillaDataset) -> None:
        start.wait(10)
        for _ in range(20):
            try:
                dataset.prepare()
                return
            except DestinationAway:
                continue  # what every caller does; SQLite lets one writer at a time
            except DestinationRefused as exc:
                failed.append(exc)
                return

    threads = [threading.Thread(target=create, args=[dataset]) for dataset in datasets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert [one["name"] for one in argilla.request("GET", "me/datasets")["items"]].count(name) == 1
    assert list(parts(argilla, name, "fields")) == field_names(2)
    assert [dataset.count() for dataset in datasets] == [0] * 4


def test_a_refused_record_is_told_and_stops_no_other(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    records = [judged(f"Number {i}.", 1, 2) for i in range(12)]
    bad = {
        records[0].id: replace(records[0], ratings={0: 9}),
        records[5].id: replace(records[5], fields={"id": "x"}),
        records[11].id: replace(records[11], agent="judge+judge"),
    }
    refused = dataset.log([bad.get(one.id, one) for one in records])
    assert refused.keys() == bad.keys()
    assert "9" in refused[records[0].id]
    assert "missing required value for field: 'instruction'" in refused[records[5].id]
    assert "agent" in refused[records[11].id]
    assert stored(argilla, name).keys() == {one.id for one in records} - bad.keys()


def test_a_log_of_three_hundred_records_arrives_whole(dataset: ArgillaDataset) -> None:
    assert dataset.log([judged(f"Number {i}.", 1, 2) for i in range(300)]) == {}
    assert dataset.count() == 300
    assert dataset.log([]) == {}


def test_records_of_megabytes_are_sent_in_several_requests(dataset: ArgillaDataset) -> None:
    large = [judged(f"{i} {'x' * 1_500_000}", 1, 2) for i in range(2)]
    assert dataset.log(large) == {}
    assert dataset.count() == 2


def test_any_text_arrives(argilla: ArgillaServer, dataset: ArgillaDataset, name: str) -> None:
    sent = judged("\0 \ud83d and \U0001f600 \x07 <b>", 1, 2)
    assert dataset.log([sent]) == {}
    text = stored(argilla, name)[sent.id]["fields"]["instruction"]
    assert text == "\ufffd \ufffd and \U0001f600 \x07 <b>"


def test_the_author_of_a_jurys_suggestion_is_the_whole_jury(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    small = judged("Two?", 1, 2, judges=("llama-3-70b", "qwen-2"))
    large = judged("Many?", 1, 2, judges=tuple(f"{i}{'-judge' * 10}" for i in range(9)))
    assert dataset.log([small, large]) == {}
    value, agent = suggestions(argilla, name, small.id)["generations-1-rating"]
    assert (value, agent) == (2, "llama-3-70b / qwen-2")
    assert suggestions(argilla, name, large.id)["generations-1-rating"][1].endswith("and 8 more")


def test_a_workspace_is_made_by_an_owner_alone(argilla: ArgillaServer, opened: Open) -> None:
    workspace = f"workspace-{uuid.uuid4().hex[:8]}"
    with pytest.raises(DestinationRefused, match=f"sees no workspace '{workspace}'"):
        opened(workspace=workspace, api_key=ADMIN_KEY).prepare()
    with pytest.raises(DestinationRefused, match="there is no dataset"):
        opened(workspace=workspace).count()
    opened(workspace=workspace).prepare()
    names = [one["name"] for one in argilla.request("GET", "me/workspaces")["items"]]
    assert names.count(workspace) == 1


def test_a_workspace_that_argillas_own_client_could_not_read_is_not_made(
    argilla: ArgillaServer, opened: Open
) -> None:
    with pytest.raises(DestinationRefused, match="letters, digits, _ and -"):
        opened(workspace="my workspace").prepare()
    names = [one["name"] for one in argilla.request("GET", "me/workspaces")["items"]]
    assert "my workspace" not in names


def test_an_admin_of_the_workspace_may_do_all(opened: Open) -> None:
    dataset = opened(api_key=ADMIN_KEY)
    dataset.prepare()
    assert dataset.log([judged("Hello.", 1, 2)]) == {}
    assert (dataset.count(), list(dataset.answers())) == (1, [])


def test_an_annotator_may_not_write(argilla: ArgillaServer, opened: Open, name: str) -> None:
    with pytest.raises(DestinationRefused, match="ARGILLA_API_KEY may not POST"):
        opened(api_key=ANNOTATOR_KEYS[0]).prepare()
    assert listed(argilla, name) == {}


def test_a_wrong_key_is_refused_and_never_shown(opened: Open) -> None:
    dataset = opened(api_key="very.secret")
    with pytest.raises(DestinationRefused, match="ARGILLA_API_KEY") as caught:
        dataset.prepare()
    assert "very.secret" not in f"{caught.value} {caught.value.__cause__} {dataset!r}"


def test_metadata_that_a_dataset_lacks_is_added(
    argilla: ArgillaServer, dataset: ArgillaDataset, opened: Open, name: str
) -> None:
    made = listed(argilla, name)["id"]
    properties = argilla.request("GET", f"me/datasets/{made}/metadata-properties")["items"]
    for one in properties:
        argilla.request("DELETE", f"metadata-properties/{one['id']}")
    again = opened()
    again.prepare()
    found = argilla.request("GET", f"me/datasets/{made}/metadata-properties")["items"]
    assert [one["name"] for one in found] == [one["name"] for one in properties]


def test_metadata_of_another_type_is_left_out(
    argilla: ArgillaServer, dataset: ArgillaDataset, opened: Open, name: str
) -> None:
    made = listed(argilla, name)["id"]
    for one in argilla.request("GET", f"me/datasets/{made}/metadata-properties")["items"]:
        if one["name"] == "margin":
            argilla.request("DELETE", f"metadata-properties/{one['id']}")
    margin = {"name": "margin", "title": "margin", "settings": {"type": "integer"}}
    argilla.request("POST", f"datasets/{made}/metadata-properties", margin)
    again = opened()
    again.prepare()
    sent = judged("Hello.", 1.5, 2)
    assert again.log([sent]) == {}
    metadata = stored(argilla, name)[sent.id]["metadata"]
    assert "margin" not in metadata
    assert metadata["generations-0-score"] == 1.5


def test_a_dataset_that_was_deleted_is_refused_until_it_is_made_again(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    argilla.request("DELETE", f"datasets/{listed(argilla, name)['id']}")
    with pytest.raises(DestinationRefused, match="404"):
        dataset.log([judged("Hello.", 1, 2)])
    dataset.prepare()
    assert dataset.log([judged("Hello.", 1, 2)]) == {}
    assert dataset.count() == 1


SDK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import argilla as rg
client = rg.Argilla(api_url=sys.argv[1], api_key=sys.argv[2])
dataset = client.datasets(name=sys.argv[3], workspace=sys.argv[4])
print(json.dumps([
    [record.id, dict(record.fields), record.suggestions["generations-1-rating"].value]
    for record in dataset.records
]))
"""


def test_argillas_own_client_reads_what_was_sent(
    argilla: ArgillaServer, dataset: ArgillaDataset, name: str
) -> None:
    sent = judged("Hello.", 1, 2)
    dataset.log([sent])
    done = subprocess.run(
        [sys.executable, "-c", SDK, argilla.api_url, argilla.api_key, name, WORKSPACE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[sent.id, dict(sent.fields), 2]]


class Scripted:
    """An HTTP server that gives one and the same reply, and keeps what it was asked."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        requests: list[tuple[str, dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing is printed."""

            def do_GET(self) -> None:
                requests.append((self.path, dict(self.headers)))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self.requests = requests
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=[0.02], daemon=True).start()

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def asked(url: str, **changes: Any) -> None:
    """Prepare a dataset at a server that is none."""
    with ArgillaDataset(url, "very.secret", "argilla", "preferences", 2, **changes) as dataset:
        dataset.prepare()


def test_a_server_that_is_down_is_away() -> None:
    with Scripted(200, b"", {}) as gone:
        url = gone.url
    with pytest.raises(DestinationAway, match="ConnectError") as caught:
        asked(url)
    assert caught.value.retry_after_s is None


def test_a_server_that_does_not_answer_is_away() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:
        url = f"http://127.0.0.1:{silent.server_address[1]}"
        with pytest.raises(DestinationAway, match="ReadTimeout"):
            asked(url, timeout_s=0.2)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_or_broken_is_away_as_long_as_it_says(status: int) -> None:
    with (
        Scripted(status, b'{"detail": "busy"}', {"Retry-After": "7"}) as server,
        pytest.raises(DestinationAway, match="busy") as caught,
    ):
        asked(server.url)
    assert caught.value.retry_after_s == 7
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b"<html>nothing here</html>", "text/html"),
        (200, b"<html>a page</html>", "text/html"),
        (200, b'{"hello": "world"}', "application/json"),
        (200, b"[]", "application/json"),
    ],
)
def test_what_is_not_argilla_is_refused_with_its_url(status: int, body: bytes, kind: str) -> None:
    with (
        Scripted(status, body, {"Content-Type": kind}) as server,
        pytest.raises(DestinationRefused, match=r"an Argilla 2 server") as caught,
    ):
        asked(f"{server.url}/prefix")
    assert f"{server.url}/prefix" in str(caught.value)
    assert "very.secret" not in str(caught.value)
    assert server.requests[0][0] == "/prefix/api/v1/me/workspaces"


def test_a_redirect_is_not_followed() -> None:
    with Scripted(200, b'{"items": []}', {}) as other:
        elsewhere = {"Location": f"{other.url}/api/v1/me/workspaces"}
        with (
            Scripted(307, b"", elsewhere) as server,
            pytest.raises(DestinationRefused, match="307"),
        ):
            asked(server.url)
    assert other.requests == []


def test_a_url_that_is_none_is_refused() -> None:
    for url in ("http://[::1", "http://:80:80", "localhost:6900"):
        with pytest.raises(DestinationRefused, match="by http or https"):
            asked(url)


def test_the_hugging_face_token_is_shown_to_spaces_alone() -> None:
    plain = {"X-Argilla-Api-Key": "key"}
    both = plain | {"Authorization": "Bearer hf_token"}
    assert access_headers("https://me-argilla.hf.space", "key", "hf_token") == both
    assert access_headers("https://me-argilla.hf.space", "key", None) == plain
    for url in (
        "http://me-argilla.hf.space",
        "https://me-argilla.hf.space.example.com",
        "https://example.com/hf.space",
        "https://nothf.space",
        "http://localhost:6900",
    ):
        assert access_headers(url, "key", "hf_token") == plain
    with Scripted(200, b'{"items": 1}', {}) as server, pytest.raises(DestinationRefused):
        asked(server.url, hf_token="hf_token")
    assert "hf_token" not in str(server.requests)


def test_argilla_minds_no_hugging_face_token_besides_its_key(argilla: ArgillaServer) -> None:
    headers = access_headers("https://me-argilla.hf.space", argilla.api_key, "hf_token")
    reply = httpx.get(f"{argilla.api_url}/api/v1/me", headers=headers, trust_env=False, timeout=60)
    assert (reply.status_code, reply.json()["username"]) == (200, "owner")

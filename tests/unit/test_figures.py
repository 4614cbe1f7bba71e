"""What figures become as metrics, how looks are shared, and that the alerts name what exists."""

import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client.core import Metric

from producer.figures import REASONS, AtBroker, Figures, InLedger
from producer.looks import Look
from producer.metrics import PATIENCE_S, Scrape
from tests.mill import recipe
from workers.doors import Room, Shut
from workers.entries import Backlog
from workers.errors import BrokerError
from workers.ledger import CALL_COUNTS, JUDGE_COUNTS, Counts
from workers.liveness import Sign
from workers.recipe import Recipe

ALERTS = Path(__file__).parents[2] / "docs/alerts.md"
CALLS = dict(zip(CALL_COUNTS, (90, 7, 10, 5, 1000, 2000), strict=True))
JUDGED = dict(zip(JUDGE_COUNTS, (4, 20, 3), strict=True))
RECIPE = Recipe.model_validate(recipe("http://127.0.0.1:9/v1", {"stdin": True}))
COUNTS = Counts(
    in_flight=3,
    paired=80,
    rejected={"tie": 5},
    failed={"lost": 2, "poison": 1},
    skipped={"no_instruction": 4},
    rows=81,
    calls={"a": CALLS, "judge": CALLS},
    judging={"a": dict.fromkeys(JUDGE_COUNTS, 0), "judge": JUDGED},
    deliveries={"hub": Backlog(waiting=6, delivered=70, refused=1, changed=2, trouble="no")},
)
AT_BROKER = AtBroker(
    {"mill.v1.judge": 4},
    {"mill.v1.judge": 2, "mill.v0.judge": 9},
    1,
    [Room("mock", None, 30, 192), Room("mock", "a", 20, 64), Room("mock", "b", 10, 64)],
    [Shut("mock", "model-b", "not_found", "a detail", 0.0, 0.0)],
    [Sign("x", "host", 1, ("mill.v1.judge", "mill.v0.judge"), 1, 0.0, 60.0)],
)


class Known:
    """Stores that answer at once."""

    def ledger(self) -> InLedger:
        return InLedger(COUNTS, paused=False, since=time.time() - 60)

    def broker(self) -> AtBroker:
        return AT_BROKER


def _samples(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """Values by name and label values but the run's, in the order of the labels."""
    return {
        (sample.name, *(value for name, value in sample.labels.items() if name != "run")): (
            sample.value
        )
        for metric in metrics
        for sample in metric.samples
    }


def _all() -> dict[tuple[str, ...], float]:
    return _samples(Scrape(RECIPE, Known()).collect())


def _rules() -> list[dict[str, str]]:
    blocks = re.findall(r"```yaml\n(.*?)```", ALERTS.read_text(encoding="utf-8"), re.DOTALL)
    (rules,) = [data["groups"][0]["rules"] for text in blocks if "groups" in (data := _yaml(text))]
    return list(rules)


def _yaml(text: str) -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    data: dict[str, list[dict[str, list[dict[str, str]]]]] = yaml.safe_load(text)
    return data


def test_states_add_up_to_what_was_accepted_and_outcomes_to_the_calls() -> None:
    found = _all()
    states = sum(value for key, value in found.items() if key[0] == "prefmill_prompts")
    assert states == found["prefmill_prompts_accepted_total",] == COUNTS.accepted == 91
    outcomes = {key[2]: value for key, value in found.items() if key[:2] == _of("calls", "judge")}
    assert outcomes == {"ok": 90, "failed": 6, "unparsable": 4}
    assert found["prefmill_calls_retried_total", "judge"] == 7
    assert found["prefmill_tokens_total", "a", "output"] == 2000
    assert found["prefmill_judge_flipped_total", "judge"] == 3
    assert ("prefmill_judge_flipped_total", "a") not in found


def _of(name: str, *labels: str) -> tuple[str, ...]:
    return (f"prefmill_{name}_total", *labels)


def test_queues_workers_calls_in_flight_and_doors_are_told_by_their_names_in_the_recipe() -> None:
    found = _all()
    assert found["prefmill_queue_messages", "judge"] == 4
    assert found["prefmill_unacknowledged_messages", "judge"] == 2
    assert found["prefmill_workers", "judge"] == 1
    assert found["prefmill_workers", "sink"] == 0
    assert found["prefmill_endpoint_calls_in_flight", "mock"] == 30
    assert found["prefmill_model_calls_limit", "mock", "b"] == 64
    assert found["prefmill_endpoint_shut", "mock", ""] == 0
    assert found["prefmill_model_shut", "mock", "a", ""] == 0
    assert found["prefmill_model_shut", "mock", "b", "not_found"] == 1
    assert 59 < found["prefmill_oldest_in_flight_seconds",] < 70


def test_reasons_without_end_are_bounded_and_none_is_lost() -> None:
    reasons = {f"reason {number:04} {'x' * 100}\ud800": number for number in range(1, 501)}
    counts = Counts(failed=reasons)
    found = _samples(Figures(RECIPE).of_ledger(InLedger(counts, paused=False, since=None)))
    failed = {key[2]: value for key, value in found.items() if key[1:2] == ("failed",)}
    assert len(failed) == REASONS + 2  # `other`, and the one that is always there
    assert sum(failed.values()) == sum(reasons.values())
    assert max(len(label.encode()) for label in failed) <= 64


def test_every_metric_is_described_and_every_alert_names_what_exists() -> None:
    text = ALERTS.read_text(encoding="utf-8")
    told = set(re.findall(r"^\| (`prefmill_.*?) \|", text, re.MULTILINE))
    described = set(re.findall(r"prefmill_\w+", " ".join(told)))
    exist = {key[0] for key in _all()}
    assert described == exist
    listed = re.findall(r"^\| `(Prefmill\w+)` \|", text, re.MULTILINE)
    rules = _rules()
    assert [rule["alert"] for rule in rules] == listed
    for rule in rules:
        expression = rule["expr"]
        assert set(re.findall(r"prefmill_\w+", expression)) <= exist, expression
        assert expression.count("(") == expression.count(")")
        assert set(re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)) <= {
            *("run", "run, queue", "run, model", "run, endpoint", "run, endpoint, model"),
        }


def test_many_who_ask_at_once_share_one_look_and_so_does_the_next_one() -> None:
    looks, go_on = [], threading.Event()

    def ask() -> int:
        looks.append(1)
        assert go_on.wait(10)
        return 7

    look, heard = Look("store", ask), []

    def scrape() -> None:
        look.begin()
        said = look.said(time.monotonic() + 10)
        heard.append(said.answer if said else None)

    threads = [threading.Thread(target=scrape) for _ in range(20)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    scrape()
    assert heard == [7] * 21
    assert len(looks) == 1


def test_a_store_that_hangs_costs_patience_and_is_known_once_it_answers() -> None:
    go_on = threading.Event()
    look = Look("store", lambda: go_on.wait(10))
    look.begin()
    since = time.monotonic()
    assert look.said(since + 0.2) is None
    assert time.monotonic() - since < 2
    go_on.set()
    look.begin()
    said = look.said(time.monotonic() + 5)
    assert said is not None
    assert said.answer is True


@pytest.mark.parametrize("trouble", [BrokerError("gone"), RuntimeError("a bug")])
def test_a_look_that_fails_is_a_store_that_is_away(trouble: Exception) -> None:
    def ask() -> int:
        raise trouble

    look = Look("store", ask)
    look.begin()
    since = time.monotonic()
    assert look.said(since + 0.5) is None


def test_without_a_store_its_metrics_are_missing_and_all_others_are_there() -> None:
    class Halved(Known):
        def broker(self) -> AtBroker:
            raise BrokerError("gone")

    since = time.monotonic()
    found = _samples(Scrape(RECIPE, Halved()).collect())
    assert time.monotonic() - since < PATIENCE_S
    assert found["prefmill_up", "broker"] == 0
    assert found["prefmill_up", "ledger"] == 1
    assert found["prefmill_rows_total",] == 81
    names = {key[0] for key in found}
    assert "prefmill_workers" not in names
    assert {key[0] for key in _all()} > names

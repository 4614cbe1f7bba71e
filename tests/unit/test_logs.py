"""One line an event: nothing that a value holds can forge a line or move the cursor."""

import json
import logging
import sys

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Reject
from hypothesis import given
from hypothesis import strategies as st

from workers.logs import Formatter, LogFormat, configure
from workers.masking import hide

FORGED = "x\n2026-01-01T00:00:00.000+00:00 ERROR   forged\r\x1b[2K\x1b[31m\u2028\u0085\0\x07\u202e"
FORMATS: tuple[LogFormat, ...] = ("text", "json")


def line(log_format: LogFormat, event: str = "event", **extra: object) -> str:
    record = logging.makeLogRecord(
        {"name": "workers.tests", "msg": event, "levelname": "INFO", "levelno": 20, **extra}
    )
    return Formatter(log_format).format(record)


def trouble(log_format: LogFormat, message: str) -> str:
    try:
        raise ValueError(message)
    except ValueError:
        return line(log_format, exc_info=sys.exc_info())


def test_a_line_of_text_holds_time_level_event_and_facts() -> None:
    time, level, event, *facts = line("text", "batch.done", run="r", prompts=8).split()
    assert time.endswith("+00:00")
    assert (level, event, facts) == ("INFO", "batch.done", ["run=r", "prompts=8"])


def test_a_line_of_json_holds_the_same_by_name() -> None:
    told = json.loads(line("json", "batch.done", run="r", prompts=8))
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "logger": "workers.tests",
        "level": "INFO",
        "event": "batch.done",
        "run": "r",
        "prompts": 8,
    }


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_value_cannot_forge_a_line(log_format: LogFormat) -> None:
    told = line(log_format, FORGED, value=FORGED, listed=[FORGED], mapped={"k": FORGED})
    assert len(told.splitlines()) == 1
    assert told.isprintable()


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_exception_as_a_value_cannot_forge_a_line(log_format: LogFormat) -> None:
    told = line(log_format, because=OSError(FORGED))
    assert len(told.splitlines()) == 1
    assert told.isprintable()


@given(st.text(), st.sampled_from(FORMATS))
def test_no_text_at_all_forges_a_line(text: str, log_format: LogFormat) -> None:
    told = line(log_format, text, value=text)
    assert len(told.splitlines()) == 1
    assert told.isprintable()


@given(st.text())
def test_json_gives_back_what_was_logged(text: str) -> None:
    assert json.loads(line("json", value=text))["value"] == text


def test_readable_text_stays_readable() -> None:
    assert "value=Grüße, 世界 \U0001f600" in line("text", value="Grüße, 世界 \U0001f600")


def test_trouble_is_told_in_json_on_the_same_line() -> None:
    told = trouble("json", FORGED)
    assert len(told.splitlines()) == 1
    assert told.isprintable()
    assert "ValueError: x" in json.loads(told)["trouble"]


def test_trouble_is_told_in_text_below_its_event() -> None:
    first, *below = trouble("text", "broken").splitlines()
    assert first.endswith("event")
    assert below[0] == "    Traceback (most recent call last):"
    assert below[-1] == "    ValueError: broken"


def test_trouble_cannot_forge_a_line_of_text_either() -> None:
    told = trouble("text", FORGED)
    assert not any(one.startswith("2026-01-01") for one in told.splitlines())
    assert "\x1b" not in told


def test_a_fact_cannot_take_the_place_of_the_events_level() -> None:
    assert json.loads(line("json", level="DEBUG"))["level"] == "INFO"


def test_a_mapping_with_any_keys_can_be_logged() -> None:
    line("json", counts={("a", 1): 2})


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("secret", ["sk-hidden-key-1", 'sk"hidden\\key-2', "sk-'hidden'-3"])
def test_a_hidden_value_is_masked_wherever_it_stands(log_format: LogFormat, secret: str) -> None:
    hide([secret])
    error = ValueError(secret, {"key": secret})
    try:
        raise error
    except ValueError:
        told = line(log_format, f"see {secret}", url=f"https://me:{secret}@h", because=[error])
        told += line(log_format, exc_info=sys.exc_info())
    for written in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]):
        assert written not in told
    assert "***" in told


@pytest.mark.parametrize("trouble", [Reject("the ledger is away", requeue=True), KeyError("x")])
def test_a_message_that_is_handed_back_takes_one_line_and_a_bug_its_traceback(
    trouble: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # caplog's handlers stay
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    configure()
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)

    name = type(trouble).__name__  # Celery knows a name's first task for ever

    @app.task(name=name)  # type: ignore[untyped-decorator]
    def work() -> None:
        raise trouble

    request = {"id": "id", "delivery_info": {}}
    build_tracer(name, app.tasks[name], app=app)("id", (), {}, request)
    (told,) = caplog.records
    lines = Formatter("text").format(told).splitlines()
    assert f"Task {name}[id]" in lines[0]
    assert repr(trouble) in lines[0]
    assert ("Traceback" in "".join(lines)) == (len(lines) > 1) == isinstance(trouble, KeyError)

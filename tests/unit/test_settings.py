"""What the environment may say, and that no password of it is ever shown."""

from typing import Any

import pytest

from workers.database import open_database, shown
from workers.errors import LedgerError, SettingsError
from workers.recipe import Endpoint, Recipe
from workers.settings import (
    DEFAULT_DATABASE,
    Settings,
    api_key,
    api_keys,
    checked_by_tls,
    read_settings,
    sqlite_path,
)

SECRET = "never-print-me"


def endpoint(variable: str | None) -> Endpoint:
    return Endpoint(base_url="http://127.0.0.1:8000/v1", api_key_env=variable)


def recipe(judged_by: str) -> Recipe:
    def model(name: str, where: str) -> dict[str, Any]:
        return {"name": name, "endpoint": where, "model": "m"}

    return Recipe.model_validate(
        {
            "name": "r",
            "source": {"stdin": True},
            "endpoints": {
                "open": {"base_url": "http://127.0.0.1:8000/v1"},
                "paid": {"base_url": "https://paid.example/v1", "api_key_env": "PAID_KEY"},
                "idle": {"base_url": "https://idle.example/v1", "api_key_env": "IDLE_KEY"},
            },
            "generators": [model("a", "open"), model("b", "open")],
            "judges": [model("j", judged_by)],
        }
    )


def test_an_empty_environment_has_defaults_and_no_broker() -> None:
    settings = Settings()
    assert settings.recipe == "local"
    assert settings.require_database() == DEFAULT_DATABASE
    with pytest.raises(SettingsError, match="PREFMILL_BROKER_URL is not set; accepted: a Redis"):
        settings.require_broker()


def test_a_broker_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFMILL_BROKER_URL", "")
    with pytest.raises(SettingsError, match="PREFMILL_BROKER_URL is not set"):
        Settings().require_broker()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@localhost:6379/0",
        f"rediss://me:{SECRET}@broker.example:6380",
        "redis+socket:///tmp/valkey.sock",
    ],
)
def test_a_broker_that_we_can_use_is_read(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFMILL_BROKER_URL", url)
    checked = "?ssl_cert_reqs=required" if url.startswith("rediss") else ""
    assert Settings().require_broker() == url + checked
    assert checked_by_tls(url + checked) == url + checked


@pytest.mark.parametrize("url", ["sqlite:////var/l.db", f"postgresql+psycopg://u:{SECRET}@db/m"])
def test_a_database_that_we_can_use_is_read(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFMILL_DATABASE_URL", url)
    assert Settings().require_database() == url


@pytest.mark.parametrize("url", [f"amqp://me:{SECRET}@rabbit//", "localhost:6379", "redis"])
def test_a_broker_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFMILL_BROKER_URL", url)
    with pytest.raises(SettingsError) as caught:
        Settings().require_broker()
    message = str(caught.value)
    assert message.startswith("PREFMILL_BROKER_URL has the scheme ")
    assert message.endswith("accepted: redis, rediss, redis+socket")
    assert SECRET not in message


@pytest.mark.parametrize(
    "url", [f"postgresql://u:{SECRET}@db/m", f"mysql://u:{SECRET}@db/m", "ledger.db", ""]
)
def test_a_database_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFMILL_DATABASE_URL", url)
    with pytest.raises(SettingsError) as caught:
        Settings().require_database()
    message = str(caught.value)
    assert message.startswith("PREFMILL_DATABASE_URL has the scheme ")
    assert message.endswith("accepted: sqlite, postgresql+psycopg")
    assert SECRET not in message


@pytest.mark.parametrize("name", ["BROKER", "DATABASE"])
def test_a_url_that_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"PREFMILL_{name}_URL", "redis://[::1")
    settings = Settings()
    with pytest.raises(SettingsError, match=f"PREFMILL_{name}_URL"):
        settings.require_broker() if name == "BROKER" else settings.require_database()


def test_an_empty_recipe_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFMILL_RECIPE", "")
    with pytest.raises(SettingsError, match="PREFMILL_RECIPE is empty; accepted: a value"):
        read_settings()


def test_passwords_are_masked_however_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFMILL_BROKER_URL", f"redis://:{SECRET}@localhost:6379/0")
    monkeypatch.setenv("PREFMILL_DATABASE_URL", f"postgresql+psycopg://u:{SECRET}@db/m")
    settings = Settings()
    for shown_as in (repr(settings), str(settings), settings.model_dump_json(), f"{[settings]}"):
        assert SECRET not in shown_as
    assert SECRET not in repr(settings.model_dump())


def test_variables_of_others_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE", "other")
    monkeypatch.setenv("PREFMILL_SOMETHING_ELSE", "x")
    assert Settings() == Settings(recipe="local")


def test_an_endpoint_without_a_variable_has_no_key() -> None:
    assert api_key("here", endpoint(None)) is None


def test_a_key_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAID_KEY", f" {SECRET}\n")
    assert api_key("paid", endpoint("PAID_KEY")) == SECRET


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_missing_key_is_named_by_variable_endpoint_and_way_out(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("PAID_KEY", value)
    with pytest.raises(SettingsError) as caught:
        api_key("paid", endpoint("PAID_KEY"))
    message = str(caught.value)
    assert message.startswith("PAID_KEY is not set")
    assert "endpoints.paid.api_key_env" in message
    assert "api_key_env: null" in message


@pytest.mark.parametrize("value", ["schlüssel", "two\nlines", "bell\x07"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PAID_KEY", value)
    with pytest.raises(SettingsError, match="PAID_KEY") as caught:
        api_key("paid", endpoint("PAID_KEY"))
    assert value not in str(caught.value)


def test_only_endpoints_that_a_model_uses_need_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_keys(recipe(judged_by="open")) == {"open": None}
    monkeypatch.setenv("PAID_KEY", SECRET)
    assert api_keys(recipe(judged_by="paid")) == {"open": None, "paid": SECRET}


def test_work_on_a_queue_needs_the_keys_of_its_own_calls_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = recipe(judged_by="paid")
    assert api_keys(asked, ["generate.a", "sink", "deliver"]) == {"open": None}
    assert api_keys(asked, []) == {}
    with pytest.raises(SettingsError, match="PAID_KEY is not set"):
        api_keys(asked, ["judge"])
    monkeypatch.setenv("PAID_KEY", SECRET)
    assert api_keys(asked, ["judge"]) == {"paid": SECRET}


def test_a_key_that_a_model_needs_must_be_there() -> None:
    with pytest.raises(SettingsError, match="IDLE_KEY is not set"):
        api_keys(recipe(judged_by="idle"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///prefmill-data/ledger.db", "prefmill-data/ledger.db"),
        ("sqlite:////var/lib/ledger.db", "/var/lib/ledger.db"),
        ("sqlite://", "None"),
        ("sqlite:///", "None"),
        ("postgresql+psycopg://u:p@db/m", "None"),
    ],
)
def test_the_file_of_a_database_is_found(url: str, path: str) -> None:
    assert str(sqlite_path(url)) == path


def test_a_database_is_shown_without_its_password() -> None:
    assert shown(f"postgresql+psycopg://u:{SECRET}@db/m") == "postgresql+psycopg://u:***@db/m"


def test_a_database_that_cannot_be_opened_is_told_without_its_password() -> None:
    with pytest.raises(LedgerError) as caught:
        open_database(f"nothing://u:{SECRET}@db/m")
    assert "nothing://u:***@db/m" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:p@db:port/m", "sqlite:ledger.db"])
def test_a_database_url_that_cannot_be_read_is_a_ledger_error(url: str) -> None:
    with pytest.raises(LedgerError):
        open_database(url)

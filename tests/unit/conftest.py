"""Every unit test starts from an environment that says nothing to prefmill."""

import os

import pytest

from tests.postgres import database_url, postgres_server, postgres_url

__all__ = ["database_url", "postgres_server", "postgres_url"]

OURS = ("PREFMILL_", "ARGILLA_", "HF_TOKEN", "HF_ENDPOINT")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)

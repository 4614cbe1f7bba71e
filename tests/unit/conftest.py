"""Every unit test starts from an environment that says nothing to prefmill."""

import os

import pytest

OURS = ("PREFMILL_", "ARGILLA_", "HF_TOKEN", "HF_ENDPOINT")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)

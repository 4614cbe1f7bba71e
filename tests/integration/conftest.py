"""Servers that only the integration tests need."""

import pytest

from tests.argilla_server import argilla

__all__ = ["argilla"]

#: Whoever asks for argilla-server first, installs it, in seconds.
INSTALLATION_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "argilla" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(INSTALLATION_S))

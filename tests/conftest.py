"""Real parts for the integration tests: a Valkey, an LLM server, folders with a mill in them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from producer.children import stop
from producer.valkey import start_valkey
from tests.llm_server import LlmServer
from tests.postgres import database_url, postgres_server, postgres_url

__all__ = ["database_url", "postgres_server", "postgres_url"]

# No test fails because a machine is slow.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def llm() -> Iterator[LlmServer]:
    """An LLM server that answers at once."""
    with LlmServer(latency="fixed:0.02") as server:
        yield server


@pytest.fixture
def broker_url() -> Iterator[str]:
    """A Valkey of its own."""
    with tempfile.TemporaryDirectory(prefix="prefmill-test-") as folder:
        valkey = start_valkey(Path(folder))
        try:
            yield valkey.url
        finally:
            stop([valkey.child], grace_s=5)

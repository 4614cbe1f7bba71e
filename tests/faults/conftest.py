"""What the tests of faults share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.children import stop
from tests.faults.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A Valkey that the test may kill."""
    with tempfile.TemporaryDirectory(prefix="prefmill-test-") as folder:
        one = Server(Path(folder))
        try:
            yield one
        finally:
            stop([one.valkey.child], grace_s=5)


@pytest.fixture(params=["postgresql", pytest.param("sqlite", marks=pytest.mark.chaos)])
def fleet_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind, SQLite only where all faults are tried."""
    return _database(request, tmp_path)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.chaos)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind, PostgreSQL only where all faults are tried."""
    return _database(request, tmp_path)


def _database(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url

"""Databases that the fault tests run on: a file of SQLite, a PostgreSQL."""

from tests.postgres import database_url, postgres_server, postgres_url

__all__ = ["database_url", "postgres_server", "postgres_url"]

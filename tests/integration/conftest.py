"""Servers that only the integration tests need."""

from tests.argilla_server import argilla

__all__ = ["argilla"]

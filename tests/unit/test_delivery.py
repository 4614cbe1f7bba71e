"""When a delivery is due."""

import time

import pytest

from workers.delivery import ENOUGH, due
from workers.entries import Backlog


@pytest.mark.parametrize("destination", ["argilla", "hub"])
def test_a_backlog_is_delivered_when_it_is_large_or_old(destination: str) -> None:
    now, enough = time.time(), ENOUGH[destination]
    assert not due(destination, Backlog(), 60)
    assert not due(destination, Backlog(waiting=enough - 1, oldest=now), 60)
    assert due(destination, Backlog(waiting=enough, oldest=now), 60)
    assert due(destination, Backlog(waiting=1, oldest=now - 61), 60)


def test_what_was_refused_is_no_backlog() -> None:
    assert not due("hub", Backlog(refused=9, oldest=time.time() - 999), 60)

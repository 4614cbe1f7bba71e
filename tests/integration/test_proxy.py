"""The proxy of the fault suite does what it says: a proxy that fails nothing proves nothing."""

import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Cut
from redis.exceptions import TimeoutError as Silent
from redis.retry import Retry

from tests.faults.proxy import Proxy


def _client(proxy: Proxy) -> "redis.Redis":
    return redis.Redis(
        port=proxy.port,
        socket_timeout=0.5,
        retry=Retry(NoBackoff(), 0),
        single_connection_client=True,
    )


def test_a_proxy_passes_cuts_swallows_delays_and_heals(broker_url: str) -> None:
    with Proxy(broker_url.removeprefix("redis+socket://")) as proxy:
        with _client(proxy) as client:
            assert client.ping()
            proxy.cut()
            with pytest.raises(Cut):
                client.ping()
        proxy.heal()
        with _client(proxy) as client, _client(proxy) as late:
            assert client.ping()
            proxy.black_hole()
            with pytest.raises(Silent):
                client.ping()
            with pytest.raises(Silent):
                late.ping()
        proxy.heal()
        with _client(proxy) as client:
            assert client.ping()
            proxy.delay(0.1)
            since = time.monotonic()
            assert client.ping()
            assert time.monotonic() - since >= 0.2

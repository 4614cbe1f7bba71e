"""What our transport adds to kombu's, on a real Valkey."""

from pathlib import Path

from redis import Redis

from tests.mill import recipe
from workers.app import make_app
from workers.broker import Broker
from workers.flow import publish
from workers.ledger import Ledger
from workers.recipe import Recipe


def test_a_channel_that_was_closed_under_a_publisher_is_replaced(broker_url: str) -> None:
    app = make_app(broker_url, 60)
    tried = []
    with app.producer_pool.acquire() as producer:
        stale = producer.channel
        stale.close()
        stale._disconnect_pools()

        def put() -> None:
            tried.append(producer.channel if tried else stale)
            tried[-1]._put("q", {"properties": {"priority": 0}})

        producer.connection.ensure(producer, put, max_retries=3)()
    assert tried[0] is not tried[1]
    with Redis.from_url(broker_url.replace("redis+socket://", "unix://", 1)) as client:
        assert client.llen("q") == 1


def test_what_joins_a_publication_is_found_by_its_batch(tmp_path: Path, broker_url: str) -> None:
    mill = Recipe.model_validate(recipe("http://127.0.0.1:9/v1", {"stdin": True}))
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    batches = [batch * 32 for batch in "ab"]
    publish(make_app(broker_url, 60), ledger, mill, batches)
    broker = Broker(broker_url, mill.name, mill.queues)
    found = broker.joins()
    assert sorted(found) == batches
    broker.drop_joins(found[batches[0]])
    assert sorted(broker.joins()) == batches[1:]

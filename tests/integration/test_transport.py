"""What our transport adds to kombu's, on a real Valkey."""

from redis import Redis

from workers.app import make_app


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

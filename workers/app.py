"""Celery's configuration; `celery -A workers.app worker` starts here as well.

Each setting that is not Celery's default has its reason beside it. Nothing else is configured
anywhere. Without PREFMILL_BROKER_URL the app can be imported, but no worker starts.
"""

from datetime import timedelta
from typing import Any

from celery import Celery

from workers.settings import read_settings

#: After this many seconds a message that a dead worker held is delivered again. No task may run
#: longer than half of it, or it would run a second time beside itself. The same for every process
#: on the broker, because all share one table of unacknowledged messages.
VISIBILITY_TIMEOUT_S = 3600

#: The longest that one task works on its batch before it hands the rest back, in seconds.
TASK_BUDGET_S = VISIBILITY_TIMEOUT_S / 2 - 60

CONFIGURATION: dict[str, Any] = {
    # A worker that dies gives its messages back instead of having taken them.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # Prefork wastes memory on waiting; gevent never gives a dead worker's messages back.
    "worker_pool": "threads",
    "worker_concurrency": 24,
    # A thread holds one batch; more would lie idle with one worker while another one is free.
    "worker_prefetch_multiplier": 1,
    # Nobody reads results. Chords join all the same.
    "task_ignore_result": True,
    "result_backend_thread_safe": True,
    # Without it a result store that is down while a chord's last header ends loses the body.
    "result_backend_always_retry": True,
    # Longer than any backlog: a chord whose first results expired never runs its body.
    "result_expires": timedelta(days=7),
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        # By default the sweep for messages of dead workers looks once in 100 s or more.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # A half-open connection is noticed.
        "socket_keepalive": True,
        "health_check_interval": 30,
    },
    "broker_connection_retry_on_startup": True,
    # Never give up on a broker that is away: the ledger keeps, the fleet waits.
    "broker_connection_max_retries": None,
    # JSON only: a message must not be able to make a worker run code.
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    # Someone who watches can switch events on for a while; until then they only cost.
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    "worker_enable_remote_control": False,
    # Our own log form, see workers.logs.
    "worker_hijack_root_logger": False,
    "beat_scheduler": "workers.tasks:Beat",
    "enable_utc": True,
    "include": ["workers.tasks"],
}


def make_app(broker_url: str | None) -> Celery:
    """A Celery app on a broker, which holds the chord's results as well."""
    app = Celery("prefmill")
    app.conf.update(CONFIGURATION)
    if broker_url is not None:
        app.conf.broker_url = broker_url
        store = broker_url.replace("redis+socket://", "socket://", 1)
        app.conf.result_backend = f"workers.results:Results+{store}"
    return app


def _broker_url() -> str | None:
    url = read_settings().broker_url
    return url.get_secret_value() if url else None


app = make_app(_broker_url())

"""Celery's configuration; `celery -A workers.app worker` starts here as well.

Each setting that is not Celery's default has its reason beside it. Nothing else is configured
anywhere. Without PREFMILL_BROKER_URL the app can be imported, but no worker starts.
"""

from datetime import timedelta
from typing import Any

from celery import Celery

from workers import transport
from workers.settings import checked_by_tls, read_settings

#: The longest that one task works on its batch before it hands the rest back, in seconds: work that
#: waits that long looks up whether it is still wanted.
TASK_BUDGET_S = 1740

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
        # By default the sweep for messages of dead workers looks once in 100 s or more, and a
        # worker that dies while it sweeps keeps all others from it for 300 s.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,
        # A half-open connection is noticed.
        "socket_keepalive": True,
        "socket_timeout": 20,
        "health_check_interval": 15,
    },
    "broker_connection_retry_on_startup": True,
    # Never give up on a broker that is away: the ledger keeps, the fleet waits.
    "broker_connection_max_retries": None,
    # A broker that is full refuses commands instead of connections; that passes as well.
    "broker_channel_error_retry": True,
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
    "beat_scheduler": "workers.ticks:Beat",
    "enable_utc": True,
    "include": ["workers.tasks"],
}


def make_app(broker_url: str | None, visibility_timeout_s: float = 60.0) -> Celery:
    """A Celery app on a broker, which holds the chord's results as well.

    Messages of a worker that died are delivered again after `visibility_timeout_s`.
    """
    transport.install()
    app = Celery("prefmill")
    app.conf.update(CONFIGURATION)
    options = {**app.conf.broker_transport_options, "visibility_timeout": visibility_timeout_s}
    app.conf.broker_transport_options = options
    if broker_url is not None:
        app.conf.broker_url = broker_url
        store = broker_url.replace("redis+socket://", "socket://", 1)
        app.conf.result_backend = f"workers.results:Results+{store}"
    return app


def _fleet_app() -> Celery:
    settings = read_settings()
    url = checked_by_tls(settings.broker_url.get_secret_value()) if settings.broker_url else None
    made = make_app(url, settings.visibility_timeout)
    # A step's result lives in the message for the next one: a broker that is away for minutes must
    # not cost it. A producer gives up sooner and says so.
    made.conf.task_publish_retry_policy = {
        "max_retries": 300,
        "interval_start": 0.1,
        "interval_step": 0.2,
        "interval_max": 1.0,
    }
    return made


app = _fleet_app()

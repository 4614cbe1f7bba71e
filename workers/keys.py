"""The names of everything that prefmill itself keeps in Redis, beside Celery's own keys.

    prefmill:<run>:answers:<prompt key>   hash    <address> -> an answer; @<address> -> the lease of
                                                  the call under way; done -> prompt is committed
    prefmill:<run>:paused                 string  a person paused the run
    prefmill:<run>:started:<task id>      string  the process that began a step and has not ended it
    prefmill:<run>:aside                  list    messages that nothing could be done with
    prefmill:<run>:workers:<process>      hash    a living worker process and what it last did
    prefmill:door:<endpoint>[:<model>]    hash    whether an endpoint (a model there) lets calls in
    prefmill:leases:<endpoint>[:<run>.<name>]   zset  calls in flight -> when their lease ends
    prefmill:waiting:<endpoint>:<run>.<name>    zset  processes that found no room -> when

All times are the server's, in seconds. Everything may be wiped: the ledger is the memory. An
endpoint is known by its URL and its key's name, so that two runs at one account share its doors.
"""

from workers.recipe import Endpoint, Generator, Judge
from workers.records import sha256


def answers(run: str, key: str) -> str:
    """Answered calls of one prompt."""
    return f"prefmill:{run}:answers:{key}"


def paused(run: str) -> str:
    """Exists while a run is paused."""
    return f"prefmill:{run}:paused"


def started(run: str, task_id: str) -> str:
    """Who began a step and has not ended it."""
    return f"prefmill:{run}:started:{task_id}"


def aside(run: str) -> str:
    """Messages set aside."""
    return f"prefmill:{run}:aside"


def worker(run: str, process: str) -> str:
    """A living worker process."""
    return f"prefmill:{run}:workers:{process}"


def endpoint_id(endpoint: Endpoint) -> str:
    """The same for every run that calls one account at one place."""
    return sha256(f"{endpoint.base_url}\n{endpoint.api_key_env or ''}")[:16]


def door(endpoint: Endpoint, model: str | None = None) -> str:
    """Whether an endpoint, or one model there, lets calls in."""
    return _below(f"prefmill:door:{endpoint_id(endpoint)}", sha256(model)[:16] if model else None)


def leases(endpoint: Endpoint, run: str = "", model: Generator | Judge | None = None) -> str:
    """Calls in flight to an endpoint, or those of one generator or judge of a run."""
    name = f"{run}.{model.name}" if model else None
    return _below(f"prefmill:leases:{endpoint_id(endpoint)}", name)


def waiting(endpoint: Endpoint, run: str, model: Generator | Judge) -> str:
    """Processes that found no room for a call of a generator or judge."""
    return f"prefmill:waiting:{endpoint_id(endpoint)}:{run}.{model.name}"


def _below(name: str, more: str | None) -> str:
    return f"{name}:{more}" if more else name

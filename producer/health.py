"""Whether this machine's workers get on, for a container's health check.

A process that lives proves little: what counts is that its queues move. Read from the signs that
workers give (`workers.liveness`) and from the broker.
"""

import socket
import time

from workers.broker import Broker
from workers.doors import Doors
from workers.errors import PrefmillError
from workers.liveness import signs
from workers.recipe import Recipe

#: A worker with messages waiting and nothing in hand may rest this long, in seconds.
IDLE_S = 180.0


class Unhealthy(PrefmillError):
    """A worker does not get on; the message says which and why."""


def check_workers(broker_url: str, recipe: Recipe) -> str:
    """One line on this machine's workers. Raises: Unhealthy, BrokerError."""
    broker, doors = Broker(broker_url, recipe.name, recipe.queues), Doors(broker_url, recipe)
    host, now = socket.gethostname(), time.time()
    mine = [sign for sign in signs(broker_url, recipe.name) if sign.host == host]
    if not mine:
        raise Unhealthy(f"no worker of this run gives a sign of life on {host}")
    waiting = broker.waiting()
    for sign in mine:
        rested_s = now - sign.moved_at
        depth = sum(waiting.get(queue, 0) for queue in sign.queues)
        if sign.running == 0 and depth and rested_s > IDLE_S:
            raise Unhealthy(
                f"worker {sign.pid} began nothing for {rested_s:.0f} s while {depth} messages wait"
            )
        if sign.running and rested_s > sign.patience_s and not doors.shut():
            raise Unhealthy(f"worker {sign.pid} ended nothing for {rested_s:.0f} s")
    running = sum(sign.running for sign in mine)
    return f"{len(mine)} workers on {host}, {running} batches in hand"

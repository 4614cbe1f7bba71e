"""Celery's app as Flower is given it: with the recipe's queues, which no worker is asked for.

Workers take no remote control and send no events, so Flower shows how deep the queues are; all else
is told by `prefmill status` and the metrics.
"""

from celery import Celery
from kombu.entity import Queue

from workers.app import make_app
from workers.messages import queue
from workers.recipe_file import load
from workers.settings import read_settings


def _watched() -> Celery:
    settings = read_settings()
    recipe = load(settings.recipe)
    made = make_app(settings.require_broker(), settings.visibility_timeout)
    names = [queue(recipe.name, short) for short in recipe.queues]
    made.conf.task_queues = [Queue(name) for name in names]  # type: ignore[no-untyped-call]
    made.conf.task_default_queue = names[0]
    return made


app = _watched()

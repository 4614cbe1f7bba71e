"""The Settings: broker, database, tokens, from the environment and nowhere else.

What differs between two machines that run the same recipe belongs here. Values that may hold a
password are masked in every repr.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers.errors import SettingsError
from workers.masking import is_secret
from workers.recipe import Endpoint, Recipe

BROKER_SCHEMES = ("redis", "rediss", "redis+socket")
DATABASE_SCHEMES = ("sqlite", "postgresql+psycopg")
_IN_MEMORY = ("", ":memory:")
MIN_VISIBILITY_TIMEOUT_S = 3.0
_TOKENS = ("HF_TOKEN", "ARGILLA_API_KEY")
#: URLs in which someone may have written a password, all the same.
_URLS = ("HF_ENDPOINT", "ARGILLA_API_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
DEFAULT_DATABASE = "sqlite:///prefmill-data/ledger.db"


class Settings(BaseSettings):
    """What prefmill reads from the environment, under the prefix PREFMILL_."""

    model_config = SettingsConfigDict(env_prefix="PREFMILL_", frozen=True, extra="ignore")

    broker_url: SecretStr | None = None
    database_url: SecretStr = SecretStr(DEFAULT_DATABASE)
    recipe: str = Field(default="local", min_length=1)
    #: Seconds after which messages that a dead worker held are delivered again; living workers
    #: renew theirs. The same for every process on a broker, because all share one table of them.
    visibility_timeout: float = Field(default=60.0, ge=MIN_VISIBILITY_TIMEOUT_S, le=86_400)
    #: Seconds that rows and records wait for others before they are delivered together.
    deliver_every: float = Field(default=60.0, ge=1, le=86_400)

    def require_broker(self) -> str:
        """The broker's URL. Raises: SettingsError if it is not set or of a kind we cannot use."""
        if self.broker_url is None or not self.broker_url.get_secret_value():
            raise SettingsError(
                "PREFMILL_BROKER_URL is not set; accepted: a Redis or Valkey URL such as "
                "redis://localhost:6379/0 (only `prefmill run` starts a broker of its own)"
            )
        url = self.broker_url.get_secret_value()
        if _scheme(url) not in BROKER_SCHEMES:
            raise SettingsError(
                f"PREFMILL_BROKER_URL has the scheme {_scheme(url)!r}; "
                f"accepted: {', '.join(BROKER_SCHEMES)}"
            )
        return checked_by_tls(url)

    def require_database(self) -> str:
        """The database's URL. Raises: SettingsError if it is of a kind we cannot use."""
        url = self.database_url.get_secret_value()
        if _scheme(url) not in DATABASE_SCHEMES:
            raise SettingsError(
                f"PREFMILL_DATABASE_URL has the scheme {_scheme(url)!r}; "
                f"accepted: {', '.join(DATABASE_SCHEMES)}"
            )
        if _scheme(url) == "sqlite" and sqlite_path(url) is None:
            raise SettingsError(
                "PREFMILL_DATABASE_URL names no file; accepted: sqlite:///ledger.db, "
                "or sqlite:////absolute/path/ledger.db"
            )
        return url


def read_settings() -> Settings:
    """The settings of this process. Raises: SettingsError."""
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors()[0]
        name = f"PREFMILL_{'_'.join(map(str, first['loc'])).upper()}"
        least = {
            "PREFMILL_VISIBILITY_TIMEOUT": MIN_VISIBILITY_TIMEOUT_S,
            "PREFMILL_DELIVER_EVERY": 1,
        }
        if name in least:
            raise SettingsError(
                f"{name} is {str(first['input'])!r}; "
                f"accepted: seconds, from {least[name]:g} to 86400"
            ) from None
        raise SettingsError(f"{name} is empty; accepted: a value, or no such variable") from None


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def checked_by_tls(broker_url: str) -> str:
    """The URL of a broker whose certificate is checked, unless it says something else itself.

    redis-py checks by default; Celery refuses a URL that does not say so.
    """
    if _scheme(broker_url) != "rediss" or "ssl_cert_reqs=" in broker_url:
        return broker_url
    return f"{broker_url}{'&' if urlsplit(broker_url).query else '?'}ssl_cert_reqs=required"


def sqlite_path(database_url: str) -> Path | None:
    """The file of an SQLite URL; None for another database or for one in memory."""
    prefix = "sqlite:///"
    if not database_url.startswith(prefix) or database_url.removeprefix(prefix) in _IN_MEMORY:
        return None
    return Path(database_url.removeprefix(prefix))


def api_key(name: str, endpoint: Endpoint) -> str | None:
    """The key that calls to an endpoint carry. Raises: SettingsError if its variable is not set."""
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key:
        raise SettingsError(
            f"{endpoint.api_key_env} is not set; endpoint {name!r} (endpoints.{name}.api_key_env) "
            "takes its key from there; accepted: a key, or api_key_env: null for none"
        )
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(
            f"{endpoint.api_key_env} holds characters that no HTTP header can carry; "
            "accepted: printable ASCII"
        )
    return key


def api_keys(recipe: Recipe, queues: Iterable[str] | None = None) -> dict[str, str | None]:
    """The keys that work on these queues calls endpoints with; None: on all. By endpoint's name.

    A process holds no key that it does not need: the sink has none. Raises: SettingsError.
    """
    models = recipe.models if queues is None else recipe.models_of(queues)
    used = {model.endpoint for model in models}
    return {
        name: api_key(name, endpoint) for name, endpoint in recipe.endpoints.items() if name in used
    }


def hub_token() -> str:
    """The token that may write to the Hub. Raises: SettingsError if HF_TOKEN is not set."""
    return _secret("HF_TOKEN", "hub", "a token that may write to the repository")


def hub_endpoint() -> str | None:
    """The Hub's URL, if it is another than the public one."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None


def hub_token_if_any() -> str | None:
    """The Hub's token; None without one."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def secrets(recipe: Recipe) -> frozenset[str]:
    """The keys, tokens and passwords of this process that are secrets; see `workers.masking`."""
    variables = {e.api_key_env for e in recipe.endpoints.values() if e.api_key_env}
    found = {os.environ.get(name, "").strip() for name in (*variables, *_TOKENS)}
    settings = read_settings()
    for url in (settings.broker_url, settings.database_url):
        found |= _passwords(url.get_secret_value() if url is not None else "")
    for name in _URLS:
        found |= _passwords(os.environ.get(name, "")) | _passwords(os.environ.get(name.lower(), ""))
    return frozenset(filter(is_secret, found))


def _passwords(url: str) -> set[str]:
    """The password of a URL as it is written there and as it is meant, and one in its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return set()
    written = parts.password or ""
    return {written, unquote(written), *parse_qs(parts.query).get("password", ())}


def argilla_access(recipe: Recipe) -> tuple[str, str]:
    """URL and key of the Argilla server. Raises: SettingsError if a variable is not set."""
    assert recipe.argilla is not None
    url = recipe.argilla.api_url or os.environ.get("ARGILLA_API_URL", "").strip().rstrip("/")
    if not url:
        raise SettingsError(
            "ARGILLA_API_URL is not set, and argilla.api_url neither; accepted: the URL of an "
            "Argilla server, or a recipe without `argilla`"
        )
    if _scheme(url) not in ("http", "https"):
        raise SettingsError("ARGILLA_API_URL is no http:// or https:// URL; accepted: one of these")
    return url, _secret("ARGILLA_API_KEY", "argilla", "the key of a user of that server")


def check_destinations(recipe: Recipe, names: Iterable[str] | None = None) -> None:
    """Raises: SettingsError for the first variable that a configured destination lacks."""
    wanted = recipe.destinations if names is None else names
    if "argilla" in wanted:
        argilla_access(recipe)
    if "hub" in wanted:
        hub_token()


def _secret(variable: str, section: str, accepted: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SettingsError(
            f"{variable} is not set; the recipe's `{section}` needs it; accepted: {accepted}, or a "
            f"recipe without `{section}`"
        )
    if not (value.isascii() and value.isprintable()):
        raise SettingsError(
            f"{variable} holds characters that no HTTP header can carry; accepted: printable ASCII"
        )
    return value

"""Requests to an Argilla server's REST API (2.x), and what its refusals mean.

The SDK is left out: it costs 3 s and 130 MB in every process that imports it, hides Retry-After,
cannot list a record that was discarded, and deletes a dataset if publishing it times out. Nothing
is asked twice here, no redirect is followed, and no proxy or netrc is taken from the environment:
keys go to the one host that was named.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from workers.errors import DestinationAway, DestinationRefused
from workers.retry_after import retry_after

_AWAY = frozenset({408, 409, 425, 429})
_LONGEST_DETAIL = 300


class ArgillaApi:
    """A connection to one server as one user; `timeout_s` bounds each wait for it, in seconds.

    Every call raises DestinationAway when the server cannot be reached, is busy or broken, and
    DestinationRefused when asking again will not help.
    """

    def __init__(self, url: str, key: str, hf_token: str | None, timeout_s: float) -> None:
        try:
            self.url = _shown(url)
            self._needs_token = _is_space(url) and not hf_token
            self._http = httpx.Client(
                base_url=f"{url.rstrip('/')}/api/v1/",
                headers=access_headers(url, key, hf_token),
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10)),
                # The server hangs up after each 500 and after five silent seconds, and a request
                # that meets it would be lost: no connection is used twice.
                limits=httpx.Limits(max_keepalive_connections=0),
                trust_env=False,
                follow_redirects=False,
            )
        except (ValueError, httpx.InvalidURL) as exc:
            raise DestinationRefused(
                "the URL of Argilla is none; accepted: one of an Argilla 2 server, by http or https"
            ) from exc

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        tolerate: Iterable[int] = (),
        unless: str | None = None,
    ) -> httpx.Response:
        """One request below /api/v1/; a status that is neither 2xx nor tolerated raises.

        So does not a 500 whose detail has the text `unless`.
        """
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(
                method, path, content=content, params=params, headers=headers
            )
        except httpx.RequestError as exc:
            raise DestinationAway(f"Argilla at {self.url} is not there: {_why(exc)}") from exc
        if response.is_success or response.status_code in tolerate:
            return response
        if unless is not None and response.status_code == 500 and unless in detail(response):
            return response
        raise self._failure(response)

    def value(self, response: httpx.Response) -> dict[str, Any]:
        """The JSON object that a reply holds."""
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DestinationRefused(f"{self.url} does not answer as Argilla; {self._accepted}")
        return value

    def items(self, path: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The list that GET gives."""
        items = self.value(self.call("GET", path, params=params)).get("items")
        if not isinstance(items, list):
            raise DestinationRefused(f"{self.url} does not answer as Argilla; {self._accepted}")
        return items

    def _failure(self, response: httpx.Response) -> DestinationAway | DestinationRefused:
        status, said = response.status_code, detail(response)
        asked = f"{response.request.method} {response.request.url.path}"
        if status in _AWAY or status >= 500:
            wait_s = retry_after(response.headers.get("retry-after"), time.time())
            message = f"Argilla at {self.url} answers {asked} with {status}: {said}"
            return DestinationAway(message, retry_after_s=wait_s)
        if status == 401:
            return DestinationRefused(
                f"ARGILLA_API_KEY is no key of Argilla at {self.url}; accepted: the key of one of "
                f"its users{self._token}"
            )
        if status == 403:
            return DestinationRefused(
                f"the user of ARGILLA_API_KEY may not {asked} at {self.url}; accepted: the key of "
                f"an owner, or of an admin who is a member of the workspace{self._token}"
            )
        return DestinationRefused(
            f"{self.url} answers {asked} with {status}: {said}; {self._accepted}"
        )

    @property
    def _accepted(self) -> str:
        return f"accepted: the URL of an Argilla 2 server, by http or https{self._token}"

    @property
    def _token(self) -> str:
        return ", and HF_TOKEN where its Space is private" if self._needs_token else ""


def access_headers(url: str, key: str, hf_token: str | None) -> dict[str, str]:
    """Who asks: the Argilla key, and at a Space (over TLS) the Hugging Face token besides it."""
    headers = {"X-Argilla-Api-Key": key}
    if hf_token and _is_space(url) and urlsplit(url).scheme == "https":
        headers["Authorization"] = f"Bearer {hf_token}"
    return headers


def detail(response: httpx.Response) -> str:
    """What a reply says is wrong, on one line of at most 300 characters."""
    try:
        said = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        said = response.text
    if isinstance(said, dict):
        said = said.get("params") or said
        errors = said.get("errors") if isinstance(said, dict) else None
        said = errors[0] if isinstance(errors, list) and errors else said
    text = " ".join(str(said).split())
    return text if len(text) <= _LONGEST_DETAIL else f"{text[: _LONGEST_DETAIL - 1]}…"


def _is_space(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "hf.space" or host.endswith(".hf.space")


def _shown(url: str) -> str:
    """The URL without user, password and query. Raises: ValueError if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("neither http nor https")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _why(exc: httpx.RequestError) -> str:
    # A header that cannot be sent is quoted in the message, and it is a key.
    said = "" if isinstance(exc, httpx.LocalProtocolError) else str(exc)
    return f"{type(exc).__name__}: {said}" if said else type(exc).__name__

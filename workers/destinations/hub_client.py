"""How huggingface_hub is made to ask: once, in time, and with our errors.

By itself the library waits for ever, tries a failed request six times, sleeps for as long as a
Retry-After says, and lets errors of httpx2 through. So importing this module gives it a client
of ours: while a thread is `asking`, a reply that is no success raises where it arrives, as
`DestinationAway` or `DestinationRefused`, which nothing in the library takes for a reason to try
again. Requests of others in this process (`datasets`) are left as they are.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it re-exports them
    disable_progress_bars,
    parse_ratelimit_headers,
)

from workers.errors import DestinationAway, DestinationRefused, PrefmillError
from workers.masking import hide, masked

#: Seconds until a connection must stand.
CONNECT_TIMEOUT_S = 10.0
#: The longest wait that a reply may ask for, in seconds.
LONGEST_WAIT_S = 600.0
#: Redirects that are followed in a row.
REDIRECTS = 5
#: What is kept of a reply's text, in characters.
SAID = 300

TOO_MANY_REQUESTS = 429
#: What another try may change: timeout, conflict, stale parent, locked, too early, too many.
PASSING = frozenset({408, 409, 412, 423, 425, TOO_MANY_REQUESTS})
#: In all these ways the library trips over a reply of another shape than the Hub's.
_UNREAD = (ValueError, LookupError, TypeError, AttributeError, NameError)


class RepositoryMissing(DestinationRefused):
    """The repository is not there, or not for this token."""


class FileMissing(DestinationAway):
    """The revision does not have this file."""


@dataclass(frozen=True)
class Caller:
    """On whose behalf requests are made: what their errors name, and what they never show."""

    repo_id: str
    token: str = field(repr=False)
    timeout_s: float

    def __post_init__(self) -> None:
        hide([self.token])

    def away(self, what: str, retry_after_s: float | None = None) -> DestinationAway:
        """The Hub does not take it now."""
        return DestinationAway(
            f"the Hub does not take {self.repo_id} now: {self.shown(what)}",
            retry_after_s=retry_after_s,
        )

    def refused(self, key: str, what: str, accepted: str = "") -> DestinationRefused:
        """The Hub will not take it; `key` is the variable or the recipe's key to change."""
        told = f"{key}: the Hub refuses {self.repo_id}: {self.shown(what)}"
        return DestinationRefused(f"{told}; accepted: {accepted}" if accepted else told)

    def shown(self, text: str) -> str:
        """One line of the text, without secrets."""
        line = " ".join(masked(text).split())
        return line if len(line) <= SAID else f"{line[:SAID]}…"


_caller: ContextVar[Caller | None] = ContextVar("_caller", default=None)


@contextmanager
def asking(caller: Caller) -> Iterator[None]:
    """Requests of this thread are `caller`'s; whatever the library raises is ours.

    Raises:
        RepositoryMissing, FileMissing, DestinationRefused, DestinationAway.
    """
    if not (caller.token and caller.token.isascii() and caller.token.isprintable()):
        raise caller.refused("HF_TOKEN", "no HTTP header can carry it", "printable ASCII")
    reset = _caller.set(caller)
    try:
        yield
    except PrefmillError:
        raise
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, *_UNREAD) as exc:
        raise _translated(exc, caller) from _harmless(exc, caller)
    finally:
        _caller.reset(reset)


def _translated(exc: Exception, caller: Caller) -> PrefmillError:
    if isinstance(exc, OfflineModeIsEnabled):
        return caller.refused("HF_HUB_OFFLINE", "it is set", "no such variable")
    if isinstance(exc, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return caller.refused("HF_ENDPOINT", str(exc), "an http:// or https:// URL")
    if isinstance(exc, HFValidationError):
        return caller.refused("hub.repo_id", str(exc), "owner/name")
    cause = exc.__cause__
    if isinstance(exc, RuntimeError) and isinstance(cause, PrefmillError):
        # While a file goes to storage, a refusal says nothing of the repository or the token.
        return DestinationAway(str(cause), retry_after_s=getattr(cause, "retry_after_s", None))
    if isinstance(exc, httpx2.HTTPError | OSError | RuntimeError):
        return caller.away(f"{type(exc).__name__}: {exc}")
    return caller.away(f"its answer cannot be read ({type(exc).__name__}: {exc})")


def _harmless(exc: Exception, caller: Caller) -> Exception | None:
    """The exception, unless its text holds the token: then its traceback would, too."""
    return None if caller.token in str(exc) else exc


class _Client(httpx2.Client):
    """The client of the whole process; strict with those who are `asking`."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        caller = _caller.get()
        if caller is None:
            return super().send(request, **options)
        # Some calls of the library pass timeout=None, which would outrank a client's own.
        timeout = httpx2.Timeout(caller.timeout_s, connect=min(CONNECT_TIMEOUT_S, caller.timeout_s))
        request.extensions = {**request.extensions, "timeout": timeout.as_dict()}
        try:
            response = self._sent(request, caller, options)
        except (httpx2.UnsupportedProtocol, OfflineModeIsEnabled):
            raise
        except (httpx2.HTTPError, OSError, RuntimeError) as exc:
            raise _translated(exc, caller) from _harmless(exc, caller)
        if response.is_error:
            raise _error(response, caller)
        return response

    def _sent(
        self, request: httpx2.Request, caller: Caller, options: dict[str, Any]
    ) -> httpx2.Response:
        """The reply, after redirects within the host: rows and token go to no other one."""
        timeout = request.extensions["timeout"]
        for _ in range(REDIRECTS):
            response = super().send(request, **{**options, "follow_redirects": False})
            if response.next_request is None:
                return response
            there = response.next_request.url
            if (there.scheme, there.netloc) != (request.url.scheme, request.url.netloc):
                raise caller.refused(
                    "HF_ENDPOINT",
                    f"it sends {request.method} {request.url.path} on to {there.host}",
                    "the address of the Hub itself",
                )
            response.close()
            request = response.next_request
            request.extensions = {**request.extensions, "timeout": timeout}
        raise caller.away(f"more than {REDIRECTS} redirects")


def _error(response: httpx2.Response, caller: Caller) -> PrefmillError:
    status = response.status_code
    said = f"{status} {_said(response) or response.reason_phrase}"
    code = response.headers.get("X-Error-Code")
    if response.request.method == "PUT":  # to storage, where the address carries the permission
        return caller.away(f"the upload failed: {said}", _retry_after_s(response))
    if status in (401, 403):
        return caller.refused("HF_TOKEN", said, "a token with write access to the repository")
    if status == 404 and code == "EntryNotFound":
        return FileMissing(str(caller.away(said)))
    if status == 404 and code == "RevisionNotFound":
        return caller.away(said)
    if status == 404:
        accepted = "a dataset repository that HF_TOKEN may write to"
        return RepositoryMissing(str(caller.refused("hub.repo_id", said, accepted)))
    if status in PASSING or status >= 500:
        return caller.away(said, _retry_after_s(response))
    return caller.refused("hub.repo_id", said)


def _said(response: httpx2.Response) -> str:
    """What the Hub says went wrong, without addresses: those of uploads are signed."""
    if message := response.headers.get("X-Error-Message"):
        return str(message)
    try:
        body = response.json()
    except ValueError:
        kind = response.headers.get("Content-Type", "")
        return response.text if kind.startswith("text/plain") else ""
    if not isinstance(body, dict):
        return ""
    errors = body.get("errors") or [body.get("error") or body.get("message") or ""]
    listed = errors if isinstance(errors, list) else [errors]
    return "; ".join(
        str(error.get("message", "")) if isinstance(error, dict) else str(error) for error in listed
    )


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds until another try, at most LONGEST_WAIT_S: Retry-After, or a spent rate limit."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return min(float(value), LONGEST_WAIT_S)
    try:
        wait = parsedate_to_datetime(value).timestamp() - time.time()
        return min(max(wait, 0.0), LONGEST_WAIT_S)
    except (ValueError, OverflowError):
        pass
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == TOO_MANY_REQUESTS and limit and limit.remaining == 0:
        return min(float(limit.reset_in_seconds), LONGEST_WAIT_S)
    return None


#: What the library hooks into its own client, such as HF_HUB_OFFLINE.
_hooks = get_session().event_hooks


def _client() -> httpx2.Client:
    """What huggingface_hub makes for itself, but ours."""
    return _Client(event_hooks=_hooks, follow_redirects=True, timeout=None)


set_client_factory(_client)
# It warns of each file that does not go by xet, and draws a bar for no files at all.
logging.getLogger("huggingface_hub._commit_api").setLevel(logging.ERROR)
if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
    disable_progress_bars()

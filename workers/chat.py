"""One chat completion over HTTP: one attempt, one typed end.

Knows HTTP alone: what a reply says is for `reply`, and of retries, caches and prompts nothing is
known here. Every way in which a call can go wrong becomes a `CallFailed` with one of `REASONS`, so
that no error can ever be taken for text.

    refused connection, DNS, TLS, reset             connection          asked again
    nothing whole within the deadline               timeout             asked again
    a reply                                         see `workers.reply`
"""

import asyncio
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from workers.errors import CallFailed
from workers.masking import hide, masked
from workers.reply import Completion, read_reply

REASONS = (
    "connection",
    "timeout",
    "rate_limited",
    "server_error",
    "unauthorized",
    "payment_required",
    "not_found",
    "redirected",
    "bad_request",
    "malformed_reply",
    "empty_reply",
    "content_filter",
    "refusal",
    "truncated",
    "secret",
)

#: A reply longer than this, packed or unpacked, is not read to its end.
MAX_REPLY_BYTES = 16 * 1024 * 1024

#: Bytes that are unpacked at a time.
_UNPACKED_BYTES = 256 * 1024

#: The one content coding that is asked for, and how zlib is told to read it.
_CODING, _WBITS = "gzip", 16 + zlib.MAX_WBITS


class Transport(AiohttpTransport):
    """httpx-aiohttp's transport with its errors told apart.

    As it comes it calls a refused connection, a failed name look-up and a server that hangs up
    after the request all `ConnectTimeout`, and lets some of aiohttp's own errors through.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises: httpx.TransportError."""
        try:
            return await super().handle_async_request(request)
        except httpx.TimeoutException as exc:
            raise _told_apart(exc, exc.__cause__) from exc
        except aiohttp.ClientError as exc:
            raise httpx.RemoteProtocolError(str(exc) or type(exc).__name__) from exc


def _told_apart(exc: httpx.TimeoutException, cause: BaseException | None) -> httpx.TransportError:
    if isinstance(cause, aiohttp.ServerTimeoutError):
        return exc
    if isinstance(cause, aiohttp.ClientConnectorError):
        return httpx.ConnectError(str(cause))
    if isinstance(cause, aiohttp.ClientConnectionError):
        return httpx.RemoteProtocolError(str(cause) or "server hung up")
    return exc


def open_client(
    base_url: str, key: str | None, *, connections: int, proxy: str | None = None
) -> httpx.AsyncClient:
    """A client for one endpoint: no redirects, no proxy or netrc from the environment.

    The key is masked from now on in whatever this process says.
    """
    hide([key] if key else [])
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers["Accept-Encoding"] = _CODING
    transport = Transport(
        verify=ssl.create_default_context(),
        trust_env=False,
        limits=httpx.Limits(max_connections=connections, keepalive_expiry=30),
        proxy=httpx.Proxy(proxy) if proxy else None,
    )
    return httpx.AsyncClient(
        base_url=base_url + "/",
        headers=headers,
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # noqa: S113 (one deadline for the whole call instead, in `complete`)
    )


async def complete(
    client: httpx.AsyncClient, body: Mapping[str, Any], *, timeout_s: float
) -> Completion:
    """Ask for one chat completion; `timeout_s` bounds all of it, from connect to last byte.

    Raises: CallFailed.
    """
    try:
        content = json.dumps(dict(body), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as exc:
        raise CallFailed("bad_request", f"the request cannot be written: {exc}") from exc
    try:
        async with asyncio.timeout(timeout_s):
            status, headers, raw = await _exchange(client, content)
    except TimeoutError as exc:
        raise CallFailed("timeout", f"no whole reply in {timeout_s:g} s", retriable=True) from exc
    except httpx.TransportError as exc:
        detail = masked(f"{type(exc).__name__}: {exc}".rstrip(": "))
        raise CallFailed("connection", detail, retriable=True) from exc
    except httpx.RequestError as exc:
        raise CallFailed("malformed_reply", masked(str(exc)), retriable=True) from exc
    return read_reply(status, headers, raw)


async def _exchange(client: httpx.AsyncClient, content: bytes) -> tuple[int, httpx.Headers, bytes]:
    json_body = {"Content-Type": "application/json"}
    async with client.stream(
        "POST", "chat/completions", content=content, headers=json_body
    ) as response:
        parts, size = [], 0
        async for part in _unpacked(response):
            size += len(part)
            if size > MAX_REPLY_BYTES:
                raise CallFailed("malformed_reply", f"more than {MAX_REPLY_BYTES} bytes")
            parts.append(part)
        return response.status_code, response.headers, b"".join(parts)


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body in parts of bounded size: httpx would unpack whatever came at once as a whole."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        async for part in response.stream:
            yield part
        return
    if coding != _CODING:
        raise CallFailed("malformed_reply", f"content-encoding {coding!r:.40}; accepted: {_CODING}")
    unpacker = zlib.decompressobj(_WBITS)
    try:
        async for part in response.stream:
            while part:
                yield unpacker.decompress(part, _UNPACKED_BYTES)
                part = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as exc:
        raise CallFailed("malformed_reply", f"{coding}: {exc}", retriable=True) from exc

"""One chat completion: one attempt, one typed end.

Knows HTTP and the OpenAI-compatible wire form; knows nothing of retries, caches or prompts. Every
way in which a call can go wrong becomes a `CallFailed` with one of `REASONS`, so that no error can
ever be taken for text. All of them stand here, which makes it long.

    refused connection, DNS, TLS, reset             connection          asked again
    nothing whole within the deadline               timeout             asked again
    429                                             rate_limited        asked again, see Retry-After
    408, 409, 425, 5xx                              server_error        asked again, see Retry-After
    401, 403                                        unauthorized        pauses the endpoint
    402                                             payment_required    pauses the endpoint
    404                                             not_found           pauses the model there
    3xx                                             redirected          final
    other 4xx                                       bad_request         final
    200 that is no chat completion                  malformed_reply     asked again
    200 with null, empty or blank content           empty_reply         asked again
    finish_reason content_filter                    content_filter      final
"""

import asyncio
import json
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from workers.errors import CallFailed
from workers.records import whole_characters
from workers.retry_after import retry_after

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
)

#: A reply longer than this, packed or unpacked, is not read to its end.
MAX_REPLY_BYTES = 16 * 1024 * 1024

#: Bytes that are unpacked at a time.
_UNPACKED_BYTES = 256 * 1024

#: The one content coding that is asked for, and how zlib is told to read it.
_CODING, _WBITS = "gzip", 16 + zlib.MAX_WBITS

_BY_STATUS = {401: "unauthorized", 402: "payment_required", 403: "unauthorized", 404: "not_found"}
_RETRIABLE_STATUS = frozenset({408, 409, 425})


#: A token of a reply, and its likeliest alternatives with their natural logarithms of probability;
#: they are kept of tokens with a digit, which may be ratings.
Token = tuple[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Completion:
    """What an endpoint answered: never empty, with what it says it cost in tokens.

    `tokens` are there if they were asked for and the endpoint tells them.
    """

    text: str
    finish_reason: str | None
    model: str | None
    input_tokens: int
    output_tokens: int
    tokens: Sequence[Token] | None = None


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
    """A client for one endpoint: no redirects, no proxy or netrc from the environment."""
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
        detail = f"{type(exc).__name__}: {exc}".rstrip(": ")
        raise CallFailed("connection", detail, retriable=True) from exc
    except httpx.RequestError as exc:
        raise CallFailed("malformed_reply", str(exc), retriable=True) from exc
    raw = _without_key(raw, client)
    if status != 200:
        raise _refused(status, headers, raw)
    try:
        return _keyless(_read(raw), _key(client))
    except CallFailed as exc:
        key = _key(client)
        if not key:
            raise
        detail = exc.detail.replace(key, "***")
        raise CallFailed(exc.reason, detail, retriable=exc.retriable) from None


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


def _without_key(raw: bytes, client: httpx.AsyncClient) -> bytes:
    """What an endpoint says is kept and logged; some say which key they were given."""
    key = _key(client).encode()
    return raw.replace(key, b"***") if key else raw


def _keyless(completion: Completion, key: str) -> Completion:
    """A completion in which the key is not spelt out, however JSON had it written."""
    said = (completion.text, completion.finish_reason, completion.model)
    if not key or not any(key in text for text in said if text):
        return completion
    text, finish, model = (one and one.replace(key, "***") for one in said)
    return replace(completion, text=text or "", finish_reason=finish, model=model)


def _key(client: httpx.AsyncClient) -> str:
    return str(client.headers.get("Authorization", "")).removeprefix("Bearer ")


def _refused(status: int, headers: httpx.Headers, raw: bytes) -> CallFailed:
    detail = f"HTTP {status} {_message(raw)}".strip()
    if status == 429:
        wait = retry_after(headers.get("retry-after"), time.time())
        return CallFailed("rate_limited", detail, retriable=True, retry_after_s=wait)
    if status >= 500 or status in _RETRIABLE_STATUS:
        wait = retry_after(headers.get("retry-after"), time.time())
        wait = wait if wait is not None else _estimated_time(raw)
        return CallFailed("server_error", detail, retriable=True, retry_after_s=wait)
    if 300 <= status < 400:
        return CallFailed("redirected", detail)
    return CallFailed(_BY_STATUS.get(status, "bad_request"), detail)


def _estimated_time(raw: bytes) -> float | None:
    """Seconds until a model is loaded, as Hugging Face's servers say with a 503."""
    try:
        seconds = float(json.loads(raw)["estimated_time"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _message(raw: bytes) -> str:
    """The first 300 characters of what an endpoint says is wrong, on one line."""
    text = raw[:4096].decode("utf-8", "replace")
    try:
        error = json.loads(raw)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return whole_characters(" ".join(str(text).split())[:300])


def _read(raw: bytes) -> Completion:
    try:
        data = json.loads(raw)
        choice = data["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage, model = data.get("usage"), data.get("model")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as exc:
        detail = f"no chat completion: {_message(raw)}"
        raise CallFailed("malformed_reply", detail, retriable=True) from exc
    if finish == "content_filter":
        raise CallFailed("content_filter", "the endpoint withheld the reply")
    if text is not None and not isinstance(text, str):
        raise CallFailed("malformed_reply", "content is not a string", retriable=True)
    if not text or not text.strip():
        raise CallFailed("empty_reply", f"content is {text!r:.40}", retriable=True)
    return Completion(
        text=whole_characters(text),
        finish_reason=whole_characters(finish) if isinstance(finish, str) else None,
        model=whole_characters(model) if isinstance(model, str) else None,
        input_tokens=_tokens(usage, "prompt_tokens"),
        output_tokens=_tokens(usage, "completion_tokens"),
        tokens=_logprobs(choice.get("logprobs")),
    )


def _logprobs(logprobs: object) -> list[Token] | None:
    """The reply's tokens as OpenAI lists them; None if any of it is of another form."""
    if not isinstance(logprobs, dict):
        return None
    try:
        return [
            (
                str(token["token"]),
                {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]}
                if any(letter.isdigit() for letter in token["token"])
                else {},
            )
            for token in logprobs["content"]
        ]
    except (KeyError, TypeError, ValueError):
        return None


def _tokens(usage: object, name: str) -> int:
    """A count of tokens, 0 if there is none that can be true."""
    count = usage.get(name) if isinstance(usage, dict) else None
    plausible = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**31
    return count if plausible and isinstance(count, int) else 0

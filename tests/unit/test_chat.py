"""Every way in which one call can end: a completion, or `CallFailed` with its reason."""

import asyncio
import email.utils
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.chat import MAX_REPLY_BYTES, REASONS, complete
from workers.errors import CallFailed
from workers.masking import hide
from workers.reply import Completion
from workers.retry_after import retry_after

Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]
BODY = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
AGAIN, FINAL = True, False


def ask(
    handler: Handler, body: dict[str, Any] = BODY, *, timeout_s: float = 5, key: str = ""
) -> Completion:
    async def one_call() -> Completion:
        transport = httpx.MockTransport(handler)  # type: ignore[arg-type]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(
            base_url="http://llm/v1/", transport=transport, headers=headers
        ) as client:
            return await complete(client, body, timeout_s=timeout_s)

    return asyncio.run(one_call())


def failure(handler: Handler, *, timeout_s: float = 5) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        ask(handler, timeout_s=timeout_s)
    assert caught.value.reason in REASONS
    return caught.value


def replying(
    content: bytes | object, status: int = 200, headers: dict[str, str] | None = None
) -> Handler:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda _request: httpx.Response(status, content=raw, headers=headers)


def completion(content: object = "Because.", **more: object) -> dict[str, Any]:
    """A reply with one choice; `more` goes beside the choices."""
    finish_reason = more.pop("finish_reason", "stop")
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return {"choices": [choice], **more}


def test_an_answer_comes_back_with_what_it_cost() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    reply = completion("Because.", model="m-0613", usage=usage)
    assert ask(replying(reply)) == Completion("Because.", "stop", "m-0613", 12, 3)


def test_the_request_is_the_body_at_the_endpoints_address() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=completion())

    ask(handler)
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "http://llm/v1/chat/completions")
    assert json.loads(request.content) == BODY


@pytest.mark.parametrize(
    ("status", "reason", "retriable"),
    [
        *((status, "server_error", AGAIN) for status in (408, 409, 425)),
        *((status, "server_error", AGAIN) for status in (500, 502, 503, 504, 529, 599)),
        (429, "rate_limited", AGAIN),
        (401, "unauthorized", FINAL),
        (403, "unauthorized", FINAL),
        (402, "payment_required", FINAL),
        (404, "not_found", FINAL),
        *((status, "redirected", FINAL) for status in (301, 302, 303, 307, 308)),
        *((status, "bad_request", FINAL) for status in (400, 405, 413, 415, 422, 451)),
    ],
)
@pytest.mark.parametrize(
    "content",
    [{"error": {"message": "no"}}, {"error": "no"}, b"<html>no</html>", b"", completion("no")],
)
def test_a_status_has_its_reason_whatever_the_body_holds(
    status: int, reason: str, retriable: bool, content: object
) -> None:
    failed = failure(replying(content, status, {"Location": "http://elsewhere/"}))
    assert (failed.reason, failed.retriable) == (reason, retriable)
    assert failed.retry_after_s is None
    assert failed.detail.startswith(f"HTTP {status}")


@pytest.mark.parametrize("status", [201, 202, 204, 206])
def test_a_success_other_than_200_is_no_answer(status: int) -> None:
    failure(replying(completion(), status))


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ({"error": {"message": "Model is\n overloaded"}}, "HTTP 400 Model is overloaded"),
        ({"error": "plain"}, "HTTP 400 plain"),
        ({"error": {"code": 7}}, 'HTTP 400 {"error": {"code": 7}}'),
        ({"error": None}, "HTTP 400 None"),
        ([1], "HTTP 400 [1]"),
        (b"\xff\xfe broken", "HTTP 400 \ufffd\ufffd broken"),
        (b"", "HTTP 400"),
    ],
)
def test_what_the_endpoint_says_is_told_on_one_line(content: object, detail: str) -> None:
    assert failure(replying(content, 400)).detail == detail


@pytest.mark.parametrize("content", [{"error": "x" * 10_000}, b"x" * 10_000, b"[" * 300_000])
def test_what_the_endpoint_says_is_cut(content: object) -> None:
    assert len(failure(replying(content, 400)).detail) < 320


def test_a_key_that_an_endpoint_repeats_is_told_to_nobody() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        given = request.headers["Authorization"].removeprefix("Bearer ")
        return httpx.Response(401, json={"error": f"Incorrect key provided: {given}."})

    hide(["sk-4f1c-not-for-you"])
    with pytest.raises(CallFailed) as caught:
        ask(handler, key="sk-4f1c-not-for-you")
    assert caught.value.detail == "HTTP 401 Incorrect key provided: ***."


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("-3", None), ("soon", None), ("", None), (None, None)],
)
def test_an_endpoint_may_ask_for_a_pause(
    status: int, header: str | None, seconds: float | None
) -> None:
    headers = {} if header is None else {"Retry-After": header}
    failed = failure(replying({"error": "busy"}, status, headers))
    assert failed.retriable
    assert failed.retry_after_s == seconds


def test_a_final_refusal_asks_for_no_pause() -> None:
    failed = failure(replying({"error": "no"}, 401, {"Retry-After": "7"}))
    assert (failed.retriable, failed.retry_after_s) == (False, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (
            email.utils.format_datetime(
                email.utils.parsedate_to_datetime("Wed, 21 Oct 2015 07:28:30 GMT")
            ),
            30.0,
        ),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", None),
        ("Wed, 99 Foo 2015 99:99:99 GMT", None),
        ("21 Oct 99999999999 07:28:00 GMT", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e400", None),
        ("\0", None),
    ],
)
def test_a_pause_may_be_a_date(value: str, seconds: float | None) -> None:
    now = email.utils.parsedate_to_datetime("Wed, 21 Oct 2015 07:28:00 GMT").timestamp()
    assert retry_after(value, now) == seconds


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_no_header_breaks_the_reading_of_a_pause(value: str) -> None:
    seconds = retry_after(value, 0.0)
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": null}',
        b'{"choices": "ab"}',
        b'{"choices": [null]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": "text"}]}',
        b'{"choices": [{"message": ["text"]}]}',
        b'{"choices": [{"text": "a completion of the older kind"}]}',
        b'{"choices": [{"message": {"content": "cut off',
        b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
        b"<html>502 Bad Gateway</html>",
        b"data: {}\n\ndata: [DONE]\n\n",
        b"[" * 300_000,
        b'{"choices":' * 50_000,
        b'{"choices": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_200_that_is_no_completion_is_malformed(content: bytes) -> None:
    failed = failure(replying(content))
    assert (failed.reason, failed.retriable) == ("malformed_reply", True)
    assert len(failed.detail) < 400


@pytest.mark.parametrize(
    "content",
    [{"text": "a"}, 7, True, 0, False, [7], [None], [{"type": "image_url"}], [{"type": "text"}]],
)
def test_content_of_another_type_is_malformed(content: object) -> None:
    failed = failure(replying(completion(content)))
    assert (failed.reason, failed.retriable) == ("malformed_reply", True)


@pytest.mark.parametrize("content", [None, "", " ", "\n\t\r\n", "\u00a0\u2003\u3000"])
def test_null_and_blank_content_are_empty(content: object) -> None:
    failed = failure(replying(completion(content)))
    assert (failed.reason, failed.retriable) == ("empty_reply", True)


def test_a_message_without_content_is_empty() -> None:
    failed = failure(replying({"choices": [{"message": {"role": "assistant"}}]}))
    assert (failed.reason, failed.retriable) == ("empty_reply", True)


@pytest.mark.parametrize("content", [None, "", "half of it"])
def test_a_filtered_answer_is_final_and_never_text(content: object) -> None:
    failed = failure(replying(completion(content, finish_reason="content_filter")))
    assert (failed.reason, failed.retriable) == ("content_filter", False)


@pytest.mark.parametrize(
    ("said", "kept"), [("stop", "stop"), ("length", "length"), (None, None), ("", None)]
)
def test_the_finish_reason_is_kept(said: object, kept: str | None) -> None:
    assert ask(replying(completion(finish_reason=said))).finish_reason == kept


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": None},
        {"prompt_tokens": "7", "completion_tokens": "3"},
        {"prompt_tokens": 1.5, "completion_tokens": []},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
    ],
)
def test_an_answer_with_an_odd_usage_costs_nothing_we_know_of(usage: object) -> None:
    answer = ask(replying(completion(usage=usage)))
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("Because.", 0, 0)


def test_an_answer_without_usage_or_model_is_an_answer() -> None:
    assert ask(replying({"choices": [{"message": {"content": "a"}}]})) == Completion(
        "a", None, None, 0, 0
    )


@pytest.mark.parametrize("usage", [[1], "7 tokens", 7])
def test_an_answer_whose_usage_is_no_object_is_still_an_answer(usage: object) -> None:
    assert ask(replying(completion(usage=usage))).text == "Because."


@pytest.mark.parametrize("tokens", [-5, 10**30, True])
def test_token_counts_that_cannot_be_are_not_counted(tokens: int) -> None:
    answer = ask(replying(completion(usage={"prompt_tokens": tokens})))
    assert (answer.input_tokens, type(answer.input_tokens)) == (0, int)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"\\ud83d\\ude00", "\U0001f600"),
        (b"a\\ud83d", "a\ufffd"),
        (b"\\ude00b", "\ufffdb"),
        (b"\\ude00\\ud83d", "\ufffd\ufffd"),
        ("é\U0001f600".encode(), "é\U0001f600"),
        (b"\\ufeffa", "\ufeffa"),
        (b" kept as it is \\u0000\\n", " kept as it is \0\n"),
    ],
)
def test_halves_of_characters_are_joined_or_replaced(sent: bytes, text: str) -> None:
    answer = ask(replying(b'{"choices": [{"message": {"content": "' + sent + b'"}}]}'))
    assert answer.text == text
    answer.text.encode()


def test_halves_of_characters_beside_the_text_are_replaced_too() -> None:
    answer = ask(replying(b'{"model": "\\ud83d", "choices": [{"message": {"content": "a"}}]}'))
    assert answer.model == "\ufffd"
    half = b'{"choices": [{"finish_reason": "\\ud83d", "message": {"content": "a"}}]}'
    failure(replying(half)).detail.encode()
    failure(replying(b'{"error": "\\ud83d"}', 400)).detail.encode()


def test_a_reply_in_gzip_is_read() -> None:
    packed = gzip.compress(json.dumps(completion("packed")).encode())
    assert ask(replying(packed, headers={"Content-Encoding": "gzip"})).text == "packed"


def test_a_reply_without_end_is_not_read_to_it() -> None:
    failed = failure(replying(b" " * (MAX_REPLY_BYTES + 1)))
    assert failed.reason == "malformed_reply"


def test_a_reply_that_does_not_come_in_time_is_a_timeout() -> None:
    async def slow(_request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(30)
        raise AssertionError("waited")

    failed = failure(slow, timeout_s=0.05)
    assert (failed.reason, failed.retriable) == ("timeout", True)
    assert failed.detail == "no whole reply in 0.05 s"


def test_a_reply_that_trickles_is_a_timeout_too() -> None:
    class Trickle(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    failed = failure(lambda _request: httpx.Response(200, stream=Trickle()), timeout_s=0.05)
    assert (failed.reason, failed.retriable) == ("timeout", True)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectError(""),
        httpx.ConnectTimeout("no route"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("server hung up"),
        httpx.ProxyError("proxy"),
        httpx.UnsupportedProtocol("gopher"),
    ],
)
def test_a_broken_connection_is_told_by_its_kind(error: httpx.TransportError) -> None:
    def broken(_request: httpx.Request) -> httpx.Response:
        raise error

    failed = failure(broken)
    assert (failed.reason, failed.retriable) == ("connection", True)
    assert failed.detail.startswith(type(error).__name__)
    assert failed.__cause__ is error


def test_a_connection_lost_within_the_reply_is_told_as_one() -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b'{"choices": '
            raise httpx.ReadError("reset")

    assert failure(lambda _request: httpx.Response(200, stream=Broken())).reason == "connection"


def test_a_body_that_is_not_what_its_encoding_says_is_malformed() -> None:
    stream = httpx.ByteStream(b"this is no gzip")
    headers = {"Content-Encoding": "gzip"}
    assert (
        failure(lambda _request: httpx.Response(200, headers=headers, stream=stream)).reason
        == "malformed_reply"
    )


@pytest.mark.parametrize("value", ["\ud83d", float("nan")])
def test_a_request_that_cannot_be_written_is_a_bad_request(value: object) -> None:
    with pytest.raises(CallFailed):
        ask(replying(completion()), {"model": "m", "value": value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "finish_reason", "error", "model"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
REPLIES = st.one_of(
    JSON,
    st.builds(lambda message: {"choices": [{"message": message}]}, JSON),
    st.builds(lambda content: completion(content), JSON),
    st.builds(lambda finish, model: completion(finish_reason=finish, model=model), JSON, JSON),
)


@settings(max_examples=150)
@given(REPLIES, st.sampled_from([200, 200, 200, 400, 429, 500, 302]))
def test_whatever_the_reply_nothing_but_a_failed_call_escapes(reply: object, status: int) -> None:
    try:
        answer = ask(replying(reply, status))
    except CallFailed as exc:
        assert exc.reason in REASONS  # noqa: PT017 (either end is right)
    else:
        assert status == 200
        assert answer.text.strip()


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_whatever_the_bytes_they_are_never_taken_for_text(raw: bytes) -> None:
    assert failure(replying(raw)).reason == "malformed_reply"


def test_a_packed_reply_is_unpacked_up_to_the_limit_and_no_further() -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    assert len(packed) < MAX_REPLY_BYTES / 8

    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield packed

    tracemalloc.start()
    headers = {"Content-Encoding": "gzip"}
    failed = failure(lambda _request: httpx.Response(200, stream=Stream(), headers=headers))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (failed.reason, failed.retriable) == ("malformed_reply", False)
    assert failed.detail == f"more than {MAX_REPLY_BYTES} bytes"
    assert most < 3 * MAX_REPLY_BYTES


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "gzip, gzip", "\x1b[2k"])
def test_a_coding_that_was_not_asked_for_is_not_unpacked(coding: str) -> None:
    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b"packed"

    headers = {"Content-Encoding": coding}
    failed = failure(lambda _request: httpx.Response(200, stream=Stream(), headers=headers))
    assert failed.detail == f"content-encoding {coding!r}; accepted: gzip"


def test_a_reply_that_holds_a_key_is_refused_however_it_is_escaped() -> None:
    key = "sk-4f1c-not-for-you"
    hide([key])
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    for written in (key, escaped):
        for place in (b'"model": "KEY", ', b'"choices": [{"message": {"content": "see KEY"}}], '):
            raw = b"{" + place + b'"choices": [{"message": {"content": "see KEY"}}]}'
            failed = failure(replying(raw.replace(b"KEY", written.encode())))
            assert (failed.reason, failed.retriable) == ("secret", False)
            assert key not in failed.detail

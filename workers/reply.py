"""What an endpoint's reply is: an answer, or the reason why there is none. Pure.

One place decides that, in this order: an error in the body or the choice; a refusal; a text that
was cut; what the other finish reasons say, by a list of those that mean a whole text; and whether
anything is left when thoughts are taken off. So no error, no half of a text and no thought is ever
taken for an answer.

    429                                             rate_limited        asked again, see Retry-After
    408, 409, 425, 5xx                              server_error        asked again, see Retry-After
    401, 403                                        unauthorized        pauses the endpoint
    402                                             payment_required    pauses the endpoint
    404                                             not_found           pauses the model there
    3xx                                             redirected          final
    other 4xx                                       bad_request         final
    200 with an error                               by its code         as that status
    200 with an error without such a code           server_error        asked again
    200 that is no chat completion                  malformed_reply     asked again
    `refusal` in the message                        refusal             final
    cut by its limit, without a text                truncated           final
    withheld by a filter                            content_filter      final
    any other finish reason that is not known       server_error        asked again
    no text, blank, nothing but thoughts            empty_reply         asked again
    a secret of this process in it                  secret              final
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from workers.errors import CallFailed
from workers.masking import holds_secret, masked
from workers.records import whole_characters
from workers.retry_after import retry_after
from workers.thoughts import without_thoughts
from workers.tokens import Token, read_tokens, tokens_of

#: The finish reason of a text that was cut, whatever word the endpoint has for it.
CUT = "length"

#: Finish reasons in lower case: OpenAI and most others, Together, TGI, Anthropic, Cohere, Baidu.
_WHOLE = frozenset(
    {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed", "normal"}
)
#: OpenAI, Anthropic and Gemini, Mistral, vLLM.
_CUT = frozenset(
    {
        CUT,
        "max_tokens",
        "max_output_tokens",
        "max_new_tokens",
        "max_length",
        "token_limit",
        "model_length",
        "model_context_window_exceeded",
        "pause_turn",
        "compaction",
        "repetition",
    }
)
#: OpenAI and Azure, Anthropic, Zhipu, Gemini, Bedrock, Cohere.
_WITHHELD = frozenset(
    {
        "content_filter",
        "content_filtered",
        "refusal",
        "sensitive",
        "safety",
        "recitation",
        "language",
        "blocklist",
        "prohibited_content",
        "spii",
        "image_safety",
        "image_prohibited_content",
        "image_recitation",
        "guardrail_intervened",
        "error_toxic",
    }
)

#: Fields of a message beside its content that hold thoughts: vLLM, Ollama, OpenRouter, Groq;
#: SGLang, llama.cpp, DeepSeek; OpenRouter; LiteLLM.
_THOUGHT_FIELDS = ("reasoning", "reasoning_content", "reasoning_details", "thinking_blocks")
_THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning")

_BY_STATUS = {401: "unauthorized", 402: "payment_required", 403: "unauthorized", 404: "not_found"}
_RETRIABLE_STATUS = frozenset({408, 409, 425})

#: Grows when a stored answer would be read otherwise; 0 stands for the versions before.
RULES = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """What an endpoint answered: a text without thoughts, never empty, and what it cost in tokens.

    `finish_reason` is as the endpoint says it, but `length` for every text that was cut. `tokens`
    are those of the text, if they were asked for and the endpoint tells them.
    """

    text: str
    finish_reason: str | None
    model: str | None
    input_tokens: int
    output_tokens: int
    tokens: Sequence[Token] | None = None


class _Content(NamedTuple):
    """A message's text, whether there were thoughts beside it, and its refusal."""

    text: str
    thoughts: bool
    refusal: str


def read_reply(status: int, headers: Mapping[str, str], raw: bytes) -> Completion:
    """The answer in a reply. `headers` are those of HTTP. Raises: CallFailed."""
    if status != 200:
        raise _failed(status, headers, raw, f"HTTP {status} {_message(raw)}".strip())
    data = _body(raw)
    choice = _first_choice(data)
    for part in (data, choice):
        if error := _error_in(part):
            code = _status_named(error)
            detail = f"HTTP 200 with error {code or ''}".rstrip() + f": {_error_message(error)}"
            raise _failed(code, headers, raw, detail)
    message = choice.get("message")
    if message is None and choice.get("finish_reason"):
        message = {}  # nothing was said: the finish reason tells why
    if not isinstance(message, dict):
        raise CallFailed("malformed_reply", f"no chat completion: {_message(raw)}", retriable=True)
    content = _content(message)
    if content.refusal.strip():
        raise CallFailed("refusal", f"the model refused: {_one_line(content.refusal)}")
    usage, model = data.get("usage"), data.get("model")
    reply = Completion(
        text=whole_characters(content.text),
        finish_reason=_finish_reason(choice.get("finish_reason")),
        model=whole_characters(model) if isinstance(model, str) else None,
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        tokens=read_tokens(choice.get("logprobs")),
    )
    return answer(reply, thoughts=content.thoughts)


def answer(reply: Completion, *, thoughts: bool = False) -> Completion:
    """The reply as an answer: whole or cut, without thoughts, with the tokens of its text alone.

    `reply` is as an endpoint sent it; `thoughts` says that some came beside its text. Raises:
    CallFailed if it is no answer.
    """
    finish = (reply.finish_reason or "").strip().lower()
    text = without_thoughts(reply.text)
    nothing = not text.strip()
    cut = finish in _CUT
    only_thoughts = nothing and (thoughts or bool(reply.text.strip()))
    if cut and nothing:
        raise CallFailed("truncated", cut_off(reply.output_tokens, reasoning=only_thoughts))
    if finish in _WITHHELD:
        raise CallFailed("content_filter", f"the endpoint withheld the reply ({finish})")
    if finish and not cut and finish not in _WHOLE:
        detail = f"finish_reason {_one_line(finish)!r:.80} is no end of a whole text"
        raise CallFailed("server_error", detail, retriable=True)
    if nothing:
        detail = "nothing but thoughts" if only_thoughts else "no text"
        raise CallFailed("empty_reply", detail, retriable=True)
    if any(said and holds_secret(said) for said in (text, reply.finish_reason, reply.model)):
        raise CallFailed("secret", "the reply holds a key, token or password of this process")
    tokens = None if reply.tokens is None else tokens_of(text, reply.tokens)
    return replace(
        reply, text=text, finish_reason=CUT if cut else reply.finish_reason, tokens=tokens
    )


def cut_off(output_tokens: int, *, reasoning: bool = False) -> str:
    """How a reply was cut, for people."""
    tokens = f"after {output_tokens} tokens" if output_tokens else "by its limit of tokens"
    return f"cut off {tokens}, all of them reasoning" if reasoning else f"cut off {tokens}"


def _failed(status: int | None, headers: Mapping[str, str], raw: bytes, detail: str) -> CallFailed:
    """The failed call that an error status stands for; one without a status may pass."""
    if status is None or status >= 500 or status in _RETRIABLE_STATUS:
        wait = retry_after(headers.get("retry-after"), time.time())
        wait = wait if wait is not None else _estimated_time(raw)
        return CallFailed("server_error", detail, retriable=True, retry_after_s=wait)
    if status == 429:
        wait = retry_after(headers.get("retry-after"), time.time())
        return CallFailed("rate_limited", detail, retriable=True, retry_after_s=wait)
    if 300 <= status < 400:
        return CallFailed("redirected", detail)
    return CallFailed(_BY_STATUS.get(status, "bad_request"), detail)


def _body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body, also where it is the only one of a list; empty for none."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    return data if isinstance(data, dict) else {}


def _first_choice(data: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice; empty for none."""
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def _error_in(part: Mapping[str, Any]) -> Any:
    """The error that a body or a choice holds; null and what holds nothing but null is none."""
    error = part if part.get("object") == "error" else part.get("error")
    return error if not isinstance(error, dict) or any(error.values()) else None


def _status_named(error: Any) -> int | None:
    """The HTTP status that an error names as its code, as a number or in digits."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and re.fullmatch("[45][0-9][0-9]", code):
        return int(code)
    return code if type(code) is int and 400 <= code < 600 else None


def _content(message: Mapping[str, Any]) -> _Content:
    """What a message says; a content in parts is joined."""
    content = message.get("content")
    thoughts = any(message.get(name) for name in _THOUGHT_FIELDS)
    refusal = message.get("refusal")
    refusals = [refusal] if isinstance(refusal, str) else []
    if content is None or isinstance(content, str):
        return _Content(content or "", thoughts, "".join(refusals))
    if not isinstance(content, list):
        raise CallFailed(
            "malformed_reply", "content is no text and no list of parts", retriable=True
        )
    texts: list[str] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind in _THOUGHT_PARTS:
            thoughts = True
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            refusals.append(part["refusal"])
        elif kind in ("text", "output_text") and isinstance(text, str):
            texts.append(text)
        else:
            detail = f"content has a part of type {kind!r:.40}; accepted: text"
            raise CallFailed("malformed_reply", detail, retriable=True)
    return _Content("".join(texts), thoughts, "".join(refusals))


def _finish_reason(said: object) -> str | None:
    """A finish reason as text: what is neither text nor null is named like any unknown one."""
    if said is None or isinstance(said, str):
        return whole_characters(said) if said else None
    return str(said)


def _estimated_time(raw: bytes) -> float | None:
    """Seconds until a model is loaded, as Hugging Face's servers say with a 503."""
    try:
        seconds = float(json.loads(raw)["estimated_time"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _message(raw: bytes) -> str:
    """The first 300 characters of what an endpoint says is wrong, on one line, without secrets."""
    data = _body(raw)
    error = data.get("error", data.get("message"))
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str):
        whole = masked(raw.decode("utf-8", "replace"))[:4096]
        message = str(error) if "error" in data and not isinstance(error, dict) else whole
    return _one_line(message)


def _error_message(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return _one_line(message if isinstance(message, str) else str(error))


def _one_line(text: str) -> str:
    return whole_characters(" ".join(masked(text).split())[:300])


def _count(usage: object, name: str) -> int:
    """A count of tokens, 0 if there is none that can be true."""
    count = usage.get(name) if isinstance(usage, dict) else None
    plausible = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**31
    return count if plausible and isinstance(count, int) else 0

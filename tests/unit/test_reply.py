"""What a 200 is: an answer, or the reason why there is none."""

import json
from typing import Any

import pytest

from workers.errors import CallFailed
from workers.masking import hide
from workers.reply import Completion, answer, read_reply

TEXT = "Loosen the roots, lift the plant, water it."
AGAIN, FINAL = True, False


def reply(content: object = TEXT, finish: object = "stop", **more: object) -> dict[str, Any]:
    """A body with one choice; `message` and `choice` go into those, the rest beside the choices."""
    message = {"role": "assistant", "content": content, **more.pop("message", {})}  # type: ignore[dict-item]
    choice = {"index": 0, "message": message, "finish_reason": finish, **more.pop("choice", {})}  # type: ignore[dict-item]
    usage = {"prompt_tokens": 30, "completion_tokens": 512}
    return {"model": "m", "choices": [choice], "usage": usage, **more}


def read(body: object) -> Completion:
    return read_reply(200, {}, json.dumps(body).encode())


def failure(body: object, headers: dict[str, str] | None = None) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        read_reply(200, headers or {}, json.dumps(body).encode())
    return caught.value


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "retriable"),
    [
        (429, "rate_limited", AGAIN),
        ("429", "rate_limited", AGAIN),
        (401, "unauthorized", FINAL),
        (402, "payment_required", FINAL),
        (403, "unauthorized", FINAL),
        (404, "not_found", FINAL),
        (400, "bad_request", FINAL),
        (422, "bad_request", FINAL),
        (408, "server_error", AGAIN),
        (502, "server_error", AGAIN),
        ("503", "server_error", AGAIN),
        (None, "server_error", AGAIN),
        ("overloaded", "server_error", AGAIN),
        (0, "server_error", AGAIN),
        (200, "server_error", AGAIN),
        (True, "server_error", AGAIN),
    ],
)
@pytest.mark.parametrize("place", ["body", "flat", "list", "choice", "beside"])
def test_an_error_in_a_200_is_the_status_it_names(
    code: object, reason: str, retriable: bool, place: str
) -> None:
    error = {"code": code, "message": "Upstream said no"}
    body: object = {
        "body": {"error": error, "user_id": "user_0"},
        "flat": {"object": "error", **error},
        "list": [{"error": error}],
        "choice": reply("Half a sen", "error", choice={"error": error}),
        "beside": reply("Half a sen", "stop", error=error),
    }[place]
    failed = failure(body)
    assert (failed.reason, failed.retriable) == (reason, retriable)
    assert failed.detail.endswith("Upstream said no")


@pytest.mark.parametrize("error", ["no capacity", {"message": "no capacity"}, {"type": "busy"}])
def test_an_error_without_a_code_is_asked_again(error: object) -> None:
    failed = failure(reply(error=error))
    assert (failed.reason, failed.retriable) == ("server_error", AGAIN)


@pytest.mark.parametrize("error", [None, "", {}, False, {"code": None, "message": None}])
def test_an_error_that_says_nothing_is_none(error: object) -> None:
    assert read(reply(error=error)).text == TEXT
    assert read(reply(choice={"error": error})).text == TEXT


def test_a_429_in_a_200_waits_as_long_as_the_header_asks() -> None:
    failed = failure({"error": {"code": 429, "message": "slow down"}}, {"retry-after": "7"})
    assert failed.retry_after_s == 7.0


# -- finish reasons ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "finish", ["stop", "STOP", " Stop ", "eos", "eos_token", "end_turn", "COMPLETE", None, ""]
)
def test_a_text_that_ended_by_itself_is_whole(finish: str | None) -> None:
    assert read(reply(finish=finish)) == Completion(TEXT, finish or None, "m", 30, 512)


def test_a_reply_without_a_finish_reason_is_whole() -> None:
    assert read({"choices": [{"message": {"content": TEXT}}]}).text == TEXT


@pytest.mark.parametrize(
    "finish",
    [
        "length",
        "LENGTH",
        "max_tokens",
        "MAX_TOKENS",
        "model_length",
        "repetition",
        "model_context_window_exceeded",
        "MAX_OUTPUT_TOKENS",
    ],
)
def test_a_cut_text_says_length_whatever_the_word(finish: str) -> None:
    assert read(reply(finish=finish)).finish_reason == "length"


@pytest.mark.parametrize("content", [None, "", " \n", "<think>Let me think about pots", []])
@pytest.mark.parametrize("finish", ["length", "MAX_TOKENS"])
def test_a_cut_without_a_text_is_truncated_at_once(content: object, finish: str) -> None:
    failed = failure(reply(content, finish))
    assert (failed.reason, failed.retriable) == ("truncated", FINAL)
    assert failed.detail.startswith("cut off after 512 tokens")


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "reasoning_details"])
def test_thoughts_that_used_up_the_tokens_are_named(field: str) -> None:
    failed = failure(reply(None, "length", message={field: "Let me think"}))
    assert failed.reason == "truncated"
    assert failed.detail == "cut off after 512 tokens, all of them reasoning"


@pytest.mark.parametrize(
    "finish",
    [
        "content_filter",
        "CONTENT_FILTER",
        "SAFETY",
        "RECITATION",
        "PROHIBITED_CONTENT",
        "SPII",
        "BLOCKLIST",
        "sensitive",
        "refusal",
        "guardrail_intervened",
        "IMAGE_SAFETY",
    ],
)
@pytest.mark.parametrize("content", [TEXT, None])
def test_a_withheld_text_is_final(finish: str, content: object) -> None:
    failed = failure(reply(content, finish))
    assert (failed.reason, failed.retriable) == ("content_filter", FINAL)


@pytest.mark.parametrize(
    "finish",
    [
        "error",
        "ERROR",
        "abort",
        "insufficient_system_resource",
        "network_error",
        "OTHER",
        "tool_calls",
        "MALFORMED_FUNCTION_CALL",
        "brand-new",
        7,
        [],
        {},
        False,
    ],
)
@pytest.mark.parametrize("content", ["A GOOD start. The three", None])
def test_any_other_finish_reason_is_named_and_asked_again(finish: object, content: object) -> None:
    failed = failure(reply(content, finish))
    assert (failed.reason, failed.retriable) == ("server_error", AGAIN)
    assert str(finish).lower() in failed.detail


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("MAX_TOKENS", "truncated"),
        ("SAFETY", "content_filter"),
        ("stop", "empty_reply"),
        ("error", "server_error"),
    ],
)
def test_a_choice_without_a_message_ends_as_it_says(finish: str, reason: str) -> None:
    assert failure({"choices": [{"index": 0, "finish_reason": finish}]}).reason == reason
    assert failure({"choices": [{"index": 0, "message": None}]}).reason == "malformed_reply"


# -- content -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        ["Loosen the roots, ", "lift the plant, water it."],
        [{"type": "text", "text": TEXT}],
        [{"type": "text", "text": "Loosen the roots, "}, {"type": "text", "text": TEXT[18:]}],
        [{"type": "output_text", "text": TEXT}],
        [{"text": TEXT}],
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
            {"type": "text", "text": TEXT},
        ],
        [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": TEXT}],
    ],
)
def test_the_parts_of_a_text_are_joined(content: object) -> None:
    assert read(reply(content)).text == TEXT


@pytest.mark.parametrize(
    "content", ["<think>hm</think>", "<think>\n\n</think>\n\n", "hm</think>\n", "<think>hm"]
)
def test_nothing_but_thoughts_is_an_empty_reply(content: str) -> None:
    failed = failure(reply(content))
    assert (failed.reason, failed.detail) == ("empty_reply", "nothing but thoughts")
    beside = failure(reply([{"type": "thinking", "thinking": []}]))
    assert (beside.reason, beside.detail) == ("empty_reply", "nothing but thoughts")


def test_thoughts_beside_the_text_are_dropped() -> None:
    message = {"reasoning_content": "The user wants", "reasoning": "The user wants"}
    assert read(reply(message=message)).text == TEXT
    both = read(reply(f"<think>The user wants</think>\n\n{TEXT}", message=message))
    assert both.text == TEXT


@pytest.mark.parametrize(
    "body",
    [
        reply(None, message={"refusal": "I can't help with that."}),
        reply(None, "length", message={"refusal": "I can't help with that."}),
        reply(TEXT, message={"refusal": "I can't help with that."}),
        reply([{"type": "refusal", "refusal": "I can't help with that."}]),
    ],
)
def test_the_refusal_field_is_final(body: object) -> None:
    failed = failure(body)
    assert (failed.reason, failed.retriable) == ("refusal", FINAL)
    assert failed.detail == "the model refused: I can't help with that."


@pytest.mark.parametrize("refusal", [None, "", " "])
def test_an_empty_refusal_is_none(refusal: object) -> None:
    assert read(reply(message={"refusal": refusal})).text == TEXT


# -- secrets -----------------------------------------------------------------------------------

WORDS = ("none", "x", "EMPTY", "ollama", "lm-studio", "dummy", "not-needed", "sk-no-key-required")


@pytest.mark.parametrize("key", [*WORDS, "token-abc123", "password", "hunter2", "argilla.apikey"])
def test_a_text_is_never_altered_by_a_placeholder(key: str) -> None:
    hide([key])
    text = f"Set api_key to {key}, or to {key.upper()}: {key} is none of x, EMPTY or ollama."
    assert read(reply(text)).text == text
    assert failure({"error": {"code": 500, "message": text}}).detail.endswith(text)


@pytest.mark.parametrize(
    "key", ["sk-proj-4f1c2a9b", "hf_AbCdEfGhIjKlMnOp", "0123456789abcdef", "k3y-of-ours-9"]
)
def test_a_reply_that_holds_a_secret_is_not_kept(key: str) -> None:
    hide([key])
    failed = failure(reply(f"My key is {key}."))
    assert (failed.reason, failed.retriable) == ("secret", FINAL)
    assert key not in failed.detail
    told = failure({"error": {"code": 401, "message": f"{'x' * 290} {key} is no key"}}).detail
    assert key[:6] not in told


# -- tokens ------------------------------------------------------------------------------------


def logprobs(*tokens: str) -> dict[str, Any]:
    alternatives = [{"token": "4", "logprob": -0.1}, {"token": "3", "logprob": -2.5}]
    return {"content": [{"token": token, "top_logprobs": alternatives} for token in tokens]}


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("Rating: 4", ["Rating: ", "4"]),
        ("<think>\n5\n</think>\n\nRating: 4", ["<think>\n", "5", "\n</think>\n\nRating: ", "4"]),
        ("Rating: 4", ["<think>", "Rating: ", "4", "</think>\n\n", "Rating: ", "4", "<|im_end|>"]),
        ("Rating: 4", ["```json\n", "Rating: ", "4", "\n```"]),
    ],
)
def test_the_tokens_are_those_of_the_text(content: str, tokens: list[str]) -> None:
    completion = read(reply(content, choice={"logprobs": logprobs(*tokens)}))
    assert completion.text == "Rating: 4"
    assert completion.tokens is not None
    assert "".join(token for token, _ in completion.tokens) == completion.text
    assert completion.tokens[-1] == ("4", {"4": -0.1, "3": -2.5})


def test_tokens_of_another_text_are_none() -> None:
    assert read(reply(choice={"logprobs": logprobs("Rating: ", "4")})).tokens is None


# -- answers of earlier versions ---------------------------------------------------------------


def test_an_earlier_answer_is_read_by_the_same_rules() -> None:
    kept = Completion(f"<think>hm</think>\n{TEXT}", "MAX_TOKENS", "m", 30, 11)
    assert answer(kept) == Completion(TEXT, "length", "m", 30, 11)
    for finish, reason in (("error", "server_error"), ("SAFETY", "content_filter")):
        with pytest.raises(CallFailed) as caught:
            answer(Completion(TEXT, finish, "m", 30, 11))
        assert caught.value.reason == reason

"""Which configured keys are secrets: long enough, and no placeholder."""

import pytest

from workers.masking import PLACEHOLDERS, is_secret


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-0123456789abcdef0123456789abcdef",
        "sk-ant-api03-Qx7",
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
        "gsk_9f8e7d6c5b4a",
        "AIzaSyA-made-up-key",
        "0123456789abcdef",
        "correct horse battery",
        "passw0rd-123",
    ],
)
def test_a_key_of_a_real_form_is_a_secret(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        "none",
        "None",
        "EMPTY",
        "ollama",
        "lm-studio",
        "token-abc123",
        "sk-no-key-required",
        "dummy",
        "not-needed",
        "NOT-NEEDED",
        "sk-1234",
        "password",
        "hunter2",
        "prefmill",
        "fifteen-letters",
    ],
)
def test_short_keys_and_placeholders_are_no_secrets(key: str) -> None:
    assert not is_secret(key)


def test_placeholders_are_written_in_lower_case() -> None:
    assert {name.lower() for name in PLACEHOLDERS} == PLACEHOLDERS

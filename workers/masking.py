"""Secrets that this process knows, and what is done about them: one rule for all who ask.

A secret is a key, token or password of at least 16 characters, or of 12 with letters and digits,
that is no known placeholder. What we say is masked (logs, errors, what a provider says is wrong);
what a model said is never altered: a reply that holds a secret is refused instead.
"""

import json
from collections.abc import Iterable

MASK = "***"

#: Characters of a secret, and of one that has letters as well as digits.
SECRET_CHARACTERS, MIXED_SECRET_CHARACTERS = 16, 12

#: What people set where a client wants a key and the server none; servers' documented defaults.
PLACEHOLDERS = frozenset(
    {
        "argilla.apikey",
        "owner.apikey",
        "your-api-key",
        "your_api_key",
        "your-api-key-here",
        "your_api_key_here",
        "insert-your-api-key",
        "enter-your-api-key",
        "dummy",
        "dummy-key",
        "dummy-api-key",
        "dummy_api_key",
        "fake-key",
        "fake-api-key",
        "fake_api_key",
        "test-key",
        "test-api-key",
        "test_api_key",
        "placeholder",
        "placeholder-key",
        "placeholder-api-key",
        "no-key",
        "no-key-needed",
        "no-key-required",
        "no_key_required",
        "no-api-key",
        "no-api-key-needed",
        "no-api-key-required",
        "no_api_key_required",
        "not-needed",
        "not_needed",
        "not-required",
        "not-a-real-key",
        "not-used",
        "unused-api-key",
        "sk-no-key-required",
        "sk-no-key-needed",
        "sk-not-needed",
        "sk-not-required",
        "sk-not-a-real-key",
        "sk-dummy",
        "sk-dummy-key",
        "sk-fake-key",
        "sk-placeholder",
        "sk-1234567890",
        "token-abc123",
        "vllm-api-key",
        "local-api-key",
        "lm-studio",
        "lmstudio",
        "ollama",
        "empty",
        "none",
    }
)

_known: frozenset[str] = frozenset()


def is_secret(value: str) -> bool:
    """Whether a configured key, token or password is worth keeping out of what leaves us.

    A shorter one, or a placeholder, is found in texts that have nothing to do with it.
    """
    if value.lower() in PLACEHOLDERS:
        return False
    mixed = any(map(str.isalpha, value)) and any(map(str.isdigit, value))
    return len(value) >= (MIXED_SECRET_CHARACTERS if mixed else SECRET_CHARACTERS)


def hide(values: Iterable[str]) -> None:
    """From now on mask those of these values that are secrets, as they are and as JSON and `repr`
    write them.

    Nothing is ever taken back.
    """
    global _known
    secrets = {value for value in values if is_secret(value)}
    written = {form(value)[1:-1] for value in secrets for form in (json.dumps, repr)}
    if not _known.issuperset(secrets | written):
        _known |= secrets | written


def holds_secret(text: str) -> bool:
    """Whether a hidden value stands in the text."""
    return any(value in text for value in _known)


def masked(text: str) -> str:
    """The text with each hidden value replaced."""
    # The longest first: one may be part of another.
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, MASK)
    return text

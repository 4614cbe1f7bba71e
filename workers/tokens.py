"""A reply's tokens with their probabilities, as OpenAI-compatible endpoints list them. Pure."""

from collections.abc import Mapping, Sequence

#: A token of a reply, and its likeliest alternatives with their natural logarithms of probability;
#: they are kept of tokens with a digit, which may be ratings.
Token = tuple[str, Mapping[str, float]]


def read_tokens(logprobs: object) -> list[Token] | None:
    """The tokens in a choice's `logprobs`; None if any of it is of another form."""
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


def tokens_of(text: str, tokens: Sequence[Token]) -> list[Token] | None:
    """The tokens of the stretch in which `text` stands last; None if it stands nowhere.

    Servers list the tokens of thoughts, fences or end marks too. A token that the stretch cuts in
    two has no alternatives.
    """
    whole = "".join(token for token, _ in tokens)
    first = whole.rfind(text)
    if first < 0:
        return None
    stretch: list[Token] = []
    end = 0
    for token, alternatives in tokens:
        start, end = end, end + len(token)
        part = token[max(0, first - start) : max(0, first + len(text) - start)]
        if part:
            stretch.append((part, alternatives if part == token else {}))
    return stretch

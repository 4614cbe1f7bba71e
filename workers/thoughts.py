"""What a reasoning model thought before it answered, taken off a text. Pure.

Servers without a reasoning parser leave thoughts in the content, between tags of the model's chat
template. One rule for all tags: what stands between an opening and its closing tag is thought; a
template may have opened the first block in the prompt, so a closing tag before any opening one ends
thoughts that began with the text; a block that begins a line and is never closed goes on to the
end. A tag in quotes or backticks is only mentioned. Linear time.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Tags of chat templates, opening and closing. DeepSeek, Qwen, GLM, Nemotron and others; Kimi;
#: Mistral; MiniMax; K2; Seed; Cohere.
_TAGS = (
    ("<think>", "</think>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<mm:think>", "</mm:think>"),
    ("<ifm|think>", "</ifm|think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_CLOSING = {opening.lower(): closing.lower() for opening, closing in _TAGS}
_TAG = re.compile(
    r"(?<![`'\"])(?:(?i:</?think>)|" + "|".join(re.escape(t) for pair in _TAGS for t in pair) + ")"
)

#: Words that are also an author's own XML: thoughts only as a closed block that begins the text.
#: Matches: "<thinking>I should …</thinking>\n\n".
_LEADING_BLOCK = re.compile(r"\s*<(thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)

#: OpenAI's channels. Matches: "<|start|>assistant<|channel|>analysis<|message|>".
_CHANNEL = re.compile(
    r"(?<![`'\"])(?:<\|start\|>assistant)?<\|channel\|>\s*([a-z]+)[^<]{0,200}"
    r"(?:<\|constrain\|>[^<]{0,50})?<\|message\|>"
)
_ANSWER_CHANNEL = "final"
#: What ends a channel's message.
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>")

#: The same where the server dropped the control tokens. Matches: "analysisWe need …assistantfinal".
_BARE_CHANNELS = re.compile(r"\s*analysis(?=[A-Z]).*?assistantfinal", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Tag:
    """One tag in a text: `name` is its opening form, in lower case."""

    name: str
    opens: bool
    start: int
    end: int


def without_thoughts(text: str) -> str:
    """The text without thoughts; unchanged to the byte where there are none.

    White space goes too where thoughts were taken off the beginning or the end. The result is empty
    for a text that is nothing but thoughts.
    """
    if "<|channel|>" in text:
        text = _answer_channel(text)
    elif bare := _BARE_CHANNELS.match(text):
        text = text[bare.end() :].lstrip()
    if leading := _LEADING_BLOCK.match(text):
        text = text[leading.end() :].lstrip()
    return _without(text, list(_thoughts(text, list(_tags(text)))))


def _tags(text: str) -> Iterator[_Tag]:
    openings = {closing: opening for opening, closing in _CLOSING.items()}
    for match in _TAG.finditer(text):
        tag = match[0].lower()
        yield _Tag(openings.get(tag, tag), tag in _CLOSING, match.start(), match.end())


def _thoughts(text: str, tags: Sequence[_Tag]) -> Iterator[tuple[int, int]]:
    """The stretches of the text that are thoughts, in order."""
    if tags and not tags[0].opens:
        yield 0, tags[0].end
    end = 0
    for tag, closing in zip(tags, _closings(tags), strict=True):
        if tag.start < end or not tag.opens:
            continue
        if closing is not None:
            end = closing.end
        elif _begins_line(text, tag.start):
            end = len(text)
        else:
            continue
        yield tag.start, end


def _closings(tags: Sequence[_Tag]) -> list[_Tag | None]:
    """The tag that closes the block of each opening one.

    Blocks nest; where more are opened than closed, openings inside a block are only mentioned, and
    its first closing tag ends it.
    """
    closings: list[_Tag | None] = [None] * len(tags)
    following: dict[str, _Tag] = {}
    for number in range(len(tags) - 1, -1, -1):
        closings[number] = following.get(tags[number].name)
        if not tags[number].opens:
            following[tags[number].name] = tags[number]
    opened: dict[str, list[int]] = {}
    for number, tag in enumerate(tags):
        if tag.opens:
            opened.setdefault(tag.name, []).append(number)
        elif outer := opened.get(tag.name):
            closings[outer.pop()] = tag
    return closings


def _begins_line(text: str, start: int) -> bool:
    while start and text[start - 1] in " \t\r":
        start -= 1
    return start == 0 or text[start - 1] == "\n"


def _without(text: str, stretches: Sequence[tuple[int, int]]) -> str:
    if not stretches:
        return text
    kept, end = [], 0
    for start, stop in stretches:
        kept.append(text[end:start])
        end = stop
    kept.append(text[end:])
    answer = "".join(kept)
    if not text[: stretches[0][0]].strip():
        answer = answer.lstrip()
    if end == len(text):
        answer = answer.rstrip()
    return answer


def _answer_channel(text: str) -> str:
    """What stands in the channel `final`, and before any channel; all others hold thoughts."""
    headers = list(_CHANNEL.finditer(text))
    if not headers:
        return text
    kept = [text[: headers[0].start()]]
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=True):
        if header[1] == _ANSWER_CHANNEL:
            closing = _CHANNEL_END.search(text, header.end(), end)
            kept.append(text[header.end() : closing.start() if closing else end])
    return "".join(kept).strip()

"""What a reasoning model thought is taken off its text, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.thoughts import without_thoughts

TAGS = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]
ANALYSIS = "<|channel|>analysis<|message|>The user greets.<|end|>"


@pytest.mark.parametrize(("opening", "closing"), TAGS)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("OPEN\nThe user wants three steps.\nCLOSE\n\nThree.", "Three."),
        ("OPEN\n\nCLOSE\n\nThree.", "Three."),
        ("OPENhmCLOSEThree.", "Three."),
        ("\n OPENhmCLOSE\n\n    code()\n", "code()\n"),
        ("The user wants\nCLOSE\n\nThree.", "Three."),
        ("The user wants CLOSE Three, as CLOSE says.", "Three, as CLOSE says."),
        ("OPENaCLOSEOne.\nOPENbCLOSETwo.", "One.\nTwo."),
        ("One. OPENbCLOSETwo.", "One. Two."),
        ("Three.\n\nOPENor four", "Three."),
        ("OPENnever closed", ""),
        ("OPENhmCLOSE", ""),
        ("OPENhmCLOSE\n \n", ""),
        ("OPENa OPENbCLOSE cCLOSEThree.", "Three."),
        ("OPENI open with OPEN first.CLOSEThree.", "Three."),
        ("OPENhmCLOSEWrite CLOSE at the end.", "Write CLOSE at the end."),
        ("Models think in `OPEN` and `CLOSE` tags.", "Models think in `OPEN` and `CLOSE` tags."),
        ('Split at "CLOSE" and keep the rest.', 'Split at "CLOSE" and keep the rest.'),
        ("The tag OPEN begins it.", "The tag OPEN begins it."),
    ],
)
def test_thoughts_are_taken_off(opening: str, closing: str, text: str, answer: str) -> None:
    made, left = (
        part.replace("OPEN", opening).replace("CLOSE", closing) for part in (text, answer)
    )
    assert without_thoughts(made) == left


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (ANALYSIS + "<|start|>assistant<|channel|>final<|message|>Hello.<|return|>", "Hello."),
        (ANALYSIS + "<|channel|>final<|message|>Hello.", "Hello."),
        (ANALYSIS, ""),
        ("<|channel|>analysis<|message|>never ended", ""),
        ("<|channel|>commentary to=f <|message|>{}<|call|><|channel|>final<|message|>Hi", "Hi"),
        ("analysisThe user greets me.assistantfinalHello.", "Hello."),
        ("<thinking>hm</thinking>\n\nHello.", "Hello."),
        ("<reasoning>hm</reasoning>Hello.", "Hello."),
        ("<thought>hm</thought>\nHello.", "Hello."),
    ],
)
def test_channels_and_leading_blocks_are_taken_off(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        " kept as it is \0\r\n",
        "I think, therefore <b>I am</b>.",
        "The XML is <a><thought>x</thought></a>.",
        "<reasoning>never closed, so an author's own",
        "An analysis of the assistant's final answer.",
        "analysis of the final assistant",
        "analysis: the assistantfinal token is odd",
        "gpt-oss writes `<|channel|>analysis<|message|>` first.",
        "def close(self): return '</think>'",
        "See [think] and [/think] below.",
    ],
)
def test_a_text_without_thoughts_is_kept_to_the_byte(text: str) -> None:
    assert without_thoughts(text) == text


@given(st.text(st.characters(exclude_characters="<[◁")))
def test_text_without_a_tag_is_never_touched(text: str) -> None:
    assert without_thoughts(text) == text


@given(st.text(alphabet=st.sampled_from("ab \n'"), max_size=20), st.sampled_from(TAGS))
def test_a_leading_block_leaves_the_answer(answer: str, tags: tuple[str, str]) -> None:
    made = f"{tags[0]}{answer}{tags[1]}\n\n{answer}"
    assert without_thoughts(made) == answer.lstrip() or answer.endswith("'")


@pytest.mark.parametrize(
    "part",
    [
        "<think>",
        "</think>",
        "\n<think>",
        "x<think>",
        "<think>a</think>",
        "<think><think></think>",
        "<|channel|>",
        "<|channel|>analysis<|message|>",
        "analysis",
        "<reasoning>",
        " ",
    ],
)
def test_reading_is_linear_in_the_text(part: str) -> None:
    # What walks the text once for each tag takes minutes here, and meets the global time-out.
    assert len(without_thoughts(part * 100_000)) <= len(part) * 100_000

"""Which texts refuse: those that open so, and none that only sounds like it."""

import pytest

from workers.refusals import OPENING, refuses

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but I can\u2019t assist with that request.",
    "Sorry, I can't help you with that.",
    "I am so sorry, but I am not able to provide this.",
    "I apologize, but I cannot fulfill your request.",
    "I apologise for the confusion, but I am unable to provide that information.",
    "My apologies, but I'm not able to generate such a text.",
    "Unfortunately, I am not able to answer that question.",
    "Regrettably, I will not be able to comply.",
    "I'm afraid that I cannot assist you.",
    "I regret to inform you that I cannot assist with this.",
    "As an AI language model, I cannot provide medical advice.",
    "As an AI language model, I cannot predict the future.",
    "As an AI, I can't do that.",
    "As a large language model, I am unable to access real-time data.",
    "As an AI assistant developed by Acme, I cannot engage in harmful activities.",
    "I'm sorry, but as an AI language model, I can't browse the internet.",
    "As an AI language model, I'm sorry, but I can't write that essay.",
    "I'm just an AI and cannot give legal advice.",
    "As an AI, I do not have the ability to help.",
    "I cannot fulfill your request. I'm just an AI.",
    "I cannot create explicit or harmful content.",
    "I can't provide information or guidance on illegal activities.",
    "I cannot and will not help with that.",
    "I must respectfully decline to answer that question.",
    "I won't help with that.",
    "I'm unable to assist with that.",
    "I'm sorry, but that's not something I can help with.",
    "I CANNOT HELP WITH THAT",
]
ANSWERS = [
    "",
    "   ",
    "I'm sorry to hear about your loss. Here is a letter to your landlord.",
    "I'm sorry for the delay; here is the answer.",
    "Sorry about that! Let me fix it.",
    "I apologize for the confusion. The answer is 4.",
    "I'm afraid of heights, and so was she.",
    "I'm sorry, but I can't agree: the premise is wrong, and here is why.",
    "I'm sorry, I can't help laughing at this.",
    "I'm sorry, I can't write more often, Mum.",
    "Sorry, I can't make it to your party.",
    "Unfortunately, I cannot attend the meeting on Friday.",
    "Regrettably, we cannot offer you the position.",
    "I must decline your kind invitation.",
    "I can't recommend this book enough.",
    "I can't help but smile when I read this.",
    "I cannot stress enough how important this is.",
    "I can't wait to help you with that.",
    "I cannot provide for my family, the farmer said.",
    "I won't lie: this is hard.",
    "I can help with that!",
    "You cannot help with that.",
    "As an AI language model, I can help you with that.",
    "As an AI language model, I don't have feelings, but here is a poem.",
    "As an AI language model, I cannot taste food, but this recipe is loved.",
    "As an AI researcher, I cannot provide a better example than this.",
    "The answer is 4. I'm sorry, but I can't help with the rest.",
    "\"I'm sorry, but I can't help you,\" said the guard.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_text_that_opens_with_an_inability_to_serve_refuses(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_what_only_sounds_like_a_refusal_is_none(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "\n\n  I'm sorry, but I can't help with that.",
        "**I'm sorry**, but I _cannot_ help with that.",
        "> I'm sorry, but I can't help with that.",
        "# I'm sorry\n\nI can't help with that.",
        "\ufeffI\u2019m sorry \u2014 I can\u02bct help with that.",
        "- I'm  sorry,\r\nbut I can not help with that.",
    ],
)
def test_markup_white_space_and_typography_hide_no_refusal(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("rest", ["", " However, here is a safe way.", "\n\nWhy? " * 50_000])
def test_what_follows_the_opening_does_not_count(rest: str) -> None:
    assert refuses("I'm sorry, but I can't help with that." + rest)
    assert not refuses("It is 4." + rest)


@pytest.mark.parametrize(
    "text",
    [
        "sorry, " * 100_000,
        " " * 1_000_000,
        "#" * 1_000_000,
        "As an AI " * 100_000,
        "I'm sorry, but I can't " * 50_000,
        "I cannot generate " + "a, " * 100_000,
    ],
)
def test_long_beginnings_of_a_refusal_alone_refuse_nothing(text: str) -> None:
    assert len(text) > OPENING
    assert not refuses(text)

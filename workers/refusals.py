"""Whether a text declines to answer, judged by how it opens. Pure.

A heuristic for English, precise rather than greedy: a refusal opens by saying that its writer
cannot or will not do one of the things that assistants are asked for. After an excuse (an apology,
or the word of being an AI) more deeds are believed than without. Neither an excuse alone, nor other
inabilities ("I can't recommend this enough"), nor quoted speech, nor what follows later counts.
"""

import re

#: Characters that make up the opening.
OPENING = 400

_PLAIN = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'") | dict.fromkeys("*_"))
_BEFORE = "#>*_~ \u2013\u2014-\t\r\n\xa0\ufeff\u200b"

_APOLOGY = r"""
    (?: (?:(?:i'm|i\ am|we're|we\ are)\ )? (?:(?:so|very|really|truly|deeply)\ )? (?:sorry|afraid)
      | (?:i|we)\ (?:(?:do|must|sincerely)\ )? (?:apologi[sz]e|regret)
      | my\ (?:sincere\ )?apologies
      | unfortunately
      | regrettably )
    (?:\ for\ (?:the|any|this)\ (?:confusion|inconvenience))? (?:\ to\ (?:say|inform\ you))?
"""
_BEING_AN_AI = r"""
    (?:as|being|i'm|i\ am) (?:\ just|\ only)? \ an?\ (?:\w+\ )?
    (?:ai|artificial\ intelligence|language\ model) (?:\ (?:language|chat|model|assistant)){0,3}
    (?:\ (?:created|developed|made|trained)\ by\ \w+)?
"""
_LINK = r"[\s,.;:!\u2013\u2014-]{1,3} (?:(?:but|and|so|however),?\ )? (?:that\ )?"
_INABILITY = r"""
    (?:(?:i|we)\ )?
    (?: (?:(?:cannot|can't|can\ not)\ and\ )? (?:won't|will\ not) (?:\ be\ able\ to)?
      | cannot | can't | can\ not
      | (?:do\ not|don't)\ have\ the\ ability\ to
      | (?:that's|that\ is|this\ is)\ not\ something\ i\ can
      | (?:(?:i'm|am|we're|are)\ )?
        (?:unable|not\ (?:able|allowed|permitted|programmed|willing))\ to
      | (?:must|have\ to)\ (?:respectfully\ )?(?:decline|refuse)\ to )
    \ (?:(?:directly|ethically|knowingly)\ )?
"""
_THE_REQUEST = r"""
    (?:this|that|your|the|such)\ (?:\w+\ ){0,2}
    (?:requests?|questions?|prompts?|tasks?|instructions?|conversations?|topics?)
"""
_DEED = rf"""
    (?: (?:provide|assist|comply)(?!\ for\b)
      | help\ (?:you\ )?with
      | engage\ in
      | (?:answer|fulfill?|satisfy|complete|continue|process|support|discuss
        |respond\ to)\ {_THE_REQUEST}
      | (?:create|generate|produce|write)\ (?:\w+,?\ ){{0,4}}(?:content|material) )\b
"""
_EXCUSED_DEED = r"""
    (?: help(?!\ (?:but|it|myself|\w+ing)\b)
      | (?:do|discuss)\ (?:that|this)
      | (?:create|generate|produce|write|translate)\ (?:an?|any|the|that|this|such|your)
      | (?:express|give|offer|share)\ (?:you\ )?(?:\w+,?\ ){0,3}
        (?:advice|details|guidance|information|instructions|opinions?)
      | (?:access|browse)\ (?:the\ (?:internet|web)|external|real-time|live|websites?|links?)
      | condone | diagnose | participate\ in | predict )\b
"""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.VERBOSE)


_REFUSAL = _compiled(rf"{_INABILITY} {_DEED}")
_EXCUSED_REFUSAL = _compiled(
    rf"(?:(?:{_APOLOGY}|{_BEING_AN_AI}) {_LINK}){{1,3}} {_INABILITY} (?:{_DEED}|{_EXCUSED_DEED})"
)


def refuses(text: str) -> bool:
    """Whether the text opens as a refusal, whatever its markup, case and kind of apostrophe."""
    opening = text.lstrip(_BEFORE)[:OPENING]
    plain = " ".join(opening.translate(_PLAIN).casefold().split())
    return any(pattern.match(plain) for pattern in (_REFUSAL, _EXCUSED_REFUSAL))

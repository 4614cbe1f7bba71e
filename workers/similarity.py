"""Whether two texts are the same but for a few edits. Pure; knows no ratings and no policy.

Case and white space do not count. Likeness is 1 - edits / characters of the longer text, with
Levenshtein's edits, and is never computed further than the threshold needs.
"""

import math

from rapidfuzz.distance import Levenshtein

#: Characters that are compared: of longer texts the beginning, so that no reply costs seconds.
COMPARED = 50_000


def folded(text: str) -> str:
    """The text in one case, with every run of white space as one blank."""
    return " ".join(text.casefold().split())


def near_identical(one: str, other: str, threshold: float) -> bool:
    """Whether two folded texts have a likeness of `threshold` (from 0 to 1) or more.

    At 0.9 one edit in ten characters of the longer text is let pass. The whole length counts, but
    edits are looked for in the first `COMPARED` characters alone.
    """
    if abs(len(one) - len(other)) > _edits(max(len(one), len(other)), threshold):
        return False
    one, other = one[:COMPARED], other[:COMPARED]
    edits = _edits(max(len(one), len(other)), threshold)
    return Levenshtein.distance(one, other, score_cutoff=edits) <= edits


def _edits(characters: int, threshold: float) -> int:
    """The most edits that leave texts alike. One in ten at 0.9, whatever floats say."""
    return math.floor(characters * (1 - threshold) + 1e-6)

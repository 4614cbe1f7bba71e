"""From judged generations to pairs: which text is chosen, which rejected, or why there is no pair.

Pure. A pair never holds the same text twice, and its chosen rating is always the higher one. Equal
ratings are ordered by SHA-256 of the text, so that no position in a list is ever an advantage.
"""

from collections.abc import Sequence
from typing import Protocol

from workers.records import Generation, Pair, Rejected, sha256

IDENTICAL = "identical_generations"
NOT_RATED = "not_rated"
TIE = "tie"
SMALL_MARGIN = "small_margin"


class PairPolicy(Protocol):
    """What decides about pairs; a recipe's `pairs` section is one."""

    @property
    def strategy(self) -> str:
        """How chosen and rejected are picked."""

    @property
    def min_margin(self) -> float:
        """The least difference of ratings that makes a pair, in points."""


def worth_judging(generations: Sequence[Generation]) -> bool:
    """Whether ratings could make a pair at all: at least two different texts."""
    return len({generation.text for generation in generations}) > 1


def make_pairs(
    generations: Sequence[Generation], ratings: Sequence[float | None], policy: PairPolicy
) -> list[Pair] | Rejected:
    """Pair the best rated text with the worst rated one (UltraFeedback's binarisation, max-min).

    `ratings[i]` is the aggregated rating of `generations[i]`; None means that it was not rated.
    All generations are usable ones.

    Raises: ValueError if the lengths differ.
    """
    if len(generations) != len(ratings):
        raise ValueError(f"{len(generations)} generations, but {len(ratings)} ratings")
    if not worth_judging(generations):
        return Rejected(IDENTICAL)
    rated = [
        (rating, sha256(generation.text or ""), generation.model, generation)
        for generation, rating in zip(generations, ratings, strict=True)
        if rating is not None
    ]
    if len(rated) < 2:
        return Rejected(NOT_RATED)
    rated.sort(key=lambda entry: entry[:3])
    return _pair(rated[-1][3], rated[-1][0], rated[0][3], rated[0][0], policy.min_margin)


def _pair(
    best: Generation, best_rating: float, worst: Generation, worst_rating: float, min_margin: float
) -> list[Pair] | Rejected:
    if best_rating == worst_rating:
        return Rejected(TIE)
    if best_rating - worst_rating < min_margin:
        return Rejected(SMALL_MARGIN)
    if best.text is None or worst.text is None or best.text == worst.text:
        return Rejected(IDENTICAL)
    return [Pair(best.text, best.model, best_rating, worst.text, worst.model, worst_rating)]

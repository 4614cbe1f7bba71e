"""From judged generations to pairs: which text is chosen, which rejected, or why there is no pair.

Pure. A pair never holds the same text twice, and its chosen rating is always the higher one. Equal
ratings are ordered by SHA-256 of the text, then by model, so that no position in a list is ever an
advantage.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from workers.records import Generation, Pair, Rejected, sha256
from workers.refusals import refuses
from workers.similarity import folded, near_identical
from workers.strategies import DECIMALS, Candidate, Duo, foremost, picked

IDENTICAL = "identical_generations"
NOT_RATED = "not_rated"
REFUSAL = "refusal"
NEAR_IDENTICAL = "near_identical"
TIE = "tie"
SMALL_MARGIN = "small_margin"
LENGTH_RATIO = "length_ratio"

KEEP_LABELLED = "keep-labelled"

#: Texts, by SHA-256, of which two and two had a preference that turned with the order shown.
Turned = frozenset[frozenset[str]]


class PairPolicy(Protocol):
    """What decides about pairs; a recipe's `pairs` section is one."""

    @property
    def strategy(self) -> str:
        """How chosen and rejected are picked, see `make_pairs`."""

    @property
    def min_margin(self) -> float:
        """The least difference of ratings that makes a pair, in points."""

    @property
    def ties(self) -> str:
        """What becomes of ties: `drop` or `keep-labelled`."""

    @property
    def max_length_ratio(self) -> float | None:
        """The most that a pair's longer text may have of the shorter one's characters."""

    @property
    def near_identical(self) -> float | None:
        """The likeness, from 0 to 1, from which two texts count as one."""

    @property
    def drop_refusals(self) -> bool:
        """Whether texts that refuse are no candidates."""


def worth_judging(generations: Sequence[Generation]) -> bool:
    """Whether ratings could make a pair at all: at least two different texts."""
    return len({generation.text for generation in generations}) > 1


def make_pairs(
    generations: Sequence[Generation],
    ratings: Sequence[float | None],
    policy: PairPolicy,
    *,
    flipped: Collection[tuple[int, int]] = frozenset(),
    draw: str = "",
) -> list[Pair] | Rejected:
    """The pairs of one prompt by the policy's strategy, or the reason why there is none.

    `ratings[i]` is the aggregated rating of `generations[i]`, all usable; None means that it was
    not rated. `flipped` are positions whose preference turned with the order in which they were
    shown: wherever those two texts meet, they tie. `draw` seeds the random choice.

    - `max-min`: the best text over the worst, as distilabel formats rows for DPO
    - `max-random`: the best over a random one that it makes a pair with (arXiv 2310.16944)
    - `mean-2sd`: the best over the one nearest to mean - 2 standard deviations of the candidates'
      ratings, among those rated lower (arXiv 2502.16825)
    - `all-pairs`: every pair, the widest margin first, once for the same two texts

    Without a pair, the reason is that of the best over the worst, or over the one that `mean-2sd`
    picks; where that is a tie and ties are kept, it is `kept`. A returned list holds no tie.

    Raises: ValueError if the lengths differ or the strategy is another.
    """
    if len(generations) != len(ratings):
        raise ValueError(f"{len(generations)} generations, but {len(ratings)} ratings")
    if not worth_judging(generations):
        return Rejected(IDENTICAL)
    candidates = [
        Candidate(rating, sha256(generation.text or ""), generation.model, generation.text or "")
        for generation, rating in zip(generations, ratings, strict=True)
        if rating is not None
    ]
    if len(candidates) < 2:
        return Rejected(NOT_RATED)
    if policy.drop_refusals:
        candidates = [candidate for candidate in candidates if not refuses(candidate.text)]
    if len(candidates) < 2:
        return Rejected(REFUSAL)
    turned = frozenset(
        frozenset(sha256(generations[position].text or "") for position in two) for two in flipped
    )
    return _paired(sorted(candidates, reverse=True), policy, turned, draw)


def _paired(
    ranked: Sequence[Candidate], policy: PairPolicy, turned: Turned, draw: str
) -> list[Pair] | Rejected:
    failure = _checks(ranked, policy, turned)
    duos = picked(ranked, policy.strategy, lambda duo: failure(duo) is None, draw)
    if duos:
        return [_pair(duo) for duo in duos]
    first = foremost(ranked, policy.strategy)
    # A pair that nothing but its own reverse speaks against holds a text rated both ways.
    reason = failure(first) or IDENTICAL
    if reason != TIE or policy.ties != KEEP_LABELLED:
        return Rejected(reason)
    return Rejected(TIE, (_pair(first, tie=True, flipped=frozenset(first.texts) in turned),))


def _checks(
    ranked: Sequence[Candidate], policy: PairPolicy, turned: Turned
) -> Callable[[Duo], str | None]:
    """What says why two candidates make no pair: the first of the checks that they fail."""
    threshold, ratio = policy.near_identical, policy.max_length_ratio
    compared = {one.digest: folded(one.text) for one in ranked} if threshold is not None else {}

    def _failure(duo: Duo) -> str | None:
        one, other = duo.texts
        if one == other:
            return IDENTICAL
        if threshold is not None and near_identical(compared[one], compared[other], threshold):
            return NEAR_IDENTICAL
        if duo.margin == 0 or frozenset(duo.texts) in turned:
            return TIE
        if duo.margin < round(policy.min_margin, DECIMALS):
            return SMALL_MARGIN
        if ratio is not None and duo.length_ratio > ratio:
            return LENGTH_RATIO
        return None

    return _failure


def _pair(duo: Duo, *, tie: bool = False, flipped: bool = False) -> Pair:
    better, worse = duo.chosen, duo.rejected
    return Pair(
        better.text,
        better.model,
        better.rating,
        worse.text,
        worse.model,
        worse.rating,
        tie=tie,
        flipped=flipped,
    )

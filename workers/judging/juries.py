"""What a jury's judgements amount to: one rating a text, and where order decided.

A jury of small, unrelated models beats one large judge (arXiv 2404.18796); judging both orders and
averaging takes out the bias of position (2305.17926). Everything is reckoned in fractions of the
numbers as they are written, so that equal means are equal and order changes nothing. Knows nothing
of pairs: what a flip or a tie is worth is for `pairing` to say.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from workers.records import Judgement

_Mean = Fraction | None
_Jury = Mapping[str, Sequence[Judgement]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rating a text (None: not applicable), from 1 to 5, by the `judges` that counted.

    `flipped` holds the pairs i < j of texts of which the jury preferred one in one order and the
    other in the opposite order.
    """

    ratings: tuple[float | None, ...]
    flipped: frozenset[tuple[int, int]]
    judges: tuple[str, ...]


def verdict(judgements: Sequence[Judgement], texts: int, quorum: int) -> Verdict | Judgement:
    """What a prompt's judgements say of its `texts`; below the quorum, the first that failed.

    A judge counts if none of its judgements failed. Its rating of a text is the mean over its
    aspects of the mean over both orders; the text's is the mean over the judges by their weights.
    What was not applicable is left out of each mean.

    Raises:
        ValueError: fewer judges than the quorum were asked at all.
    """
    jury = _counting(judgements)
    if len(jury) < quorum:
        for judgement in judgements:
            if judgement.reason is not None:
                return judgement
        raise ValueError(f"judgements of {len(jury)} judges for a quorum of {quorum}")
    ratings = _ratings(jury, texts)
    return Verdict(
        tuple(None if rating is None else float(rating) for rating in ratings),
        frozenset(_flipped(jury, texts)),
        tuple(jury),
    )


def flips(judgements: Sequence[Judgement]) -> dict[str, tuple[int, int]]:
    """How often each judge that was asked in both orders preferred the other text in the other one.

    By judge, the pairs of texts (flipped, compared) over its aspects; compared are those of which
    both texts were rated in both orders. Failed judgements are left out.
    """
    counts: dict[str, tuple[int, int]] = {}
    for (judge, _), (forward, backward) in _both_orders(judgements).items():
        flipped, compared = counts.get(judge, (0, 0))
        texts = len(forward[0].ratings)
        signs = list(_preferences(_over_orders(forward, texts), _over_orders(backward, texts)))
        counts[judge] = (flipped + sum(sign < 0 for _, sign in signs), compared + len(signs))
    return counts


def rationales(judgements: Sequence[Judgement], texts: int) -> list[str]:
    """The rationale of each text over all judgements that count.

    That of the only judgement, else a line `[judge, aspect] rationale` for each of them.
    """
    counting = [one for made in _counting(judgements).values() for one in made]
    if len(counting) == 1:
        return [rating.rationale for rating in counting[0].ratings]
    return [
        "\n".join(f"[{one.judge}, {one.aspect}] {one.ratings[text].rationale}" for one in counting)
        for text in range(texts)
    ]


def _counting(judgements: Iterable[Judgement]) -> _Jury:
    """The judgements of each judge of whom none failed; sorted, as they arrive in any order."""
    jury: dict[str, list[Judgement]] = defaultdict(list)
    for one in sorted(judgements, key=lambda one: (one.judge, one.aspect, one.backward)):
        jury[one.judge].append(one)
    return {name: made for name, made in jury.items() if all(one.reason is None for one in made)}


def _ratings(jury: _Jury, texts: int) -> list[_Mean]:
    """The rating of each text over judges, in fractions."""
    weights = [_exact(made[0].weight) for made in jury.values()]
    by_judge = [_over_aspects(made, texts) for made in jury.values()]
    return [_mean([one[text] for one in by_judge], weights) for text in range(texts)]


def _over_aspects(judgements: Sequence[Judgement], texts: int) -> list[_Mean]:
    """One judge's rating of each text: over orders first, so that each aspect weighs the same."""
    aspects: dict[str, list[Judgement]] = defaultdict(list)
    for one in judgements:
        aspects[one.aspect].append(one)
    by_aspect = [_over_orders(made, texts) for made in aspects.values()]
    return [_mean([one[text] for one in by_aspect]) for text in range(texts)]


def _over_orders(judgements: Sequence[Judgement], texts: int) -> list[_Mean]:
    """One judge's rating of each text on one aspect."""
    return [
        _mean([_exact(one.ratings[text].rating) for one in judgements]) for text in range(texts)
    ]


def _flipped(jury: _Jury, texts: int) -> list[tuple[int, int]]:
    both = _both_orders([one for made in jury.values() for one in made]).values()
    forward, backward = (
        _ratings(_counting([one for orders in both for one in orders[side]]), texts)
        for side in (0, 1)
    )
    return [pair for pair, sign in _preferences(forward, backward) if sign < 0]


def _both_orders(
    judgements: Iterable[Judgement],
) -> dict[tuple[str, str], tuple[list[Judgement], list[Judgement]]]:
    """The usable judgements forward and backward, by judge and aspect that have both."""
    found: dict[tuple[str, str], tuple[list[Judgement], list[Judgement]]] = {}
    for one in judgements:
        if one.reason is None:
            found.setdefault((one.judge, one.aspect), ([], []))[one.backward].append(one)
    return {asked: orders for asked, orders in found.items() if all(orders)}


def _preferences(
    forward: Sequence[_Mean], backward: Sequence[_Mean]
) -> Iterable[tuple[tuple[int, int], int]]:
    """The pairs of texts rated both times, with 1 for the same preference, -1 for the opposite."""
    rated = [
        (text, one, other)
        for text, (one, other) in enumerate(zip(forward, backward, strict=True))
        if one is not None and other is not None
    ]
    for (i, i_forward, i_backward), (j, j_forward, j_backward) in combinations(rated, 2):
        product = (i_forward - j_forward) * (i_backward - j_backward)
        yield (i, j), (product > 0) - (product < 0)


def _exact(number: float | None) -> _Mean:
    """The number as it is written: 0.1 is a tenth."""
    return None if number is None else Fraction(repr(number))


def _mean(values: Sequence[_Mean], weights: Sequence[_Mean] = ()) -> _Mean:
    """The weighted mean of what is not None; None if nothing is left."""
    left = [
        (value, weight)
        for value, weight in zip(values, weights or [Fraction(1)] * len(values), strict=True)
        if value is not None and weight is not None
    ]
    if not left:
        return None
    total = sum((weight for _, weight in left), Fraction(0))
    return sum((value * weight for value, weight in left), Fraction(0)) / total

"""Which of a prompt's rated texts are set against each other: the strategies of pairing.

Pure. It knows ratings and the order of texts, but not what makes a pair eligible: that is asked for
with each two. Ratings are compared to nine decimals, because means carry noise: 4.3 is 0.3 above
4.0, and 4.3 - 4.0 is not.

One text may have been rated twice, and differently. `max-min` stays what it is, the two ends of the
scale; all others leave out two texts of which each would be chosen over the other.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, pstdev

from workers.records import sha256

MAX_MIN = "max-min"
MAX_RANDOM = "max-random"
MEAN_2SD = "mean-2sd"
ALL_PAIRS = "all-pairs"
STRATEGIES = (MAX_MIN, MAX_RANDOM, MEAN_2SD, ALL_PAIRS)

#: Decimals of a rating that count.
DECIMALS = 9


@dataclass(frozen=True, order=True, slots=True)
class Candidate:
    """A rated text, ordered by rating, then SHA-256 of the text, then model."""

    rating: float
    digest: str
    model: str
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Duo:
    """Two candidates that might make a pair, the chosen one ranked higher."""

    chosen: Candidate
    rejected: Candidate

    @property
    def margin(self) -> float:
        """Rating of the chosen above the rejected, in points."""
        return round(self.chosen.rating - self.rejected.rating, DECIMALS)

    @property
    def texts(self) -> tuple[str, str]:
        """The SHA-256 of both texts."""
        return self.chosen.digest, self.rejected.digest

    @property
    def length_ratio(self) -> float:
        """Characters of the longer text over the shorter one's, without white space around."""
        shorter, longer = sorted(len(one.text.strip()) for one in (self.chosen, self.rejected))
        return longer / shorter if shorter else float("inf")


def foremost(ranked: Sequence[Candidate], strategy: str) -> Duo:
    """The best candidate and the one it is set against, or else against the worst.

    `ranked` are two candidates or more, the best first.
    """
    return Duo(ranked[0], _two_deviations_low(ranked) if strategy == MEAN_2SD else ranked[-1])


def picked(
    ranked: Sequence[Candidate], strategy: str, eligible: Callable[[Duo], bool], draw: str
) -> list[Duo]:
    """What the strategy makes of candidates, the best first: eligible duos, perhaps none.

    `draw` seeds the choice of `max-random`. Raises: ValueError for an unknown strategy.
    """
    first = foremost(ranked, strategy)
    if strategy == MAX_MIN:
        return [first] if eligible(first) else []
    if strategy not in STRATEGIES:
        raise ValueError(f"no strategy {strategy!r}, only {', '.join(STRATEGIES)}")
    duos = [Duo(*two) for two in combinations(ranked, 2)]
    if strategy == ALL_PAIRS:
        return _one_for_two_texts(_uncontradicted(duos, eligible))
    if strategy == MEAN_2SD:
        wanted = [duo for duo in duos if set(duo.texts) == set(first.texts)]
        return [first] if first in _uncontradicted(wanted, eligible) else []
    best = ranked[0]
    about = [duo for duo in duos if best.digest in duo.texts]
    able = [duo for duo in _uncontradicted(about, eligible) if duo.chosen is best]
    return [random.Random(sha256(f"{draw}:rejected")).choice(able)] if able else []


def _two_deviations_low(ranked: Sequence[Candidate]) -> Candidate:
    """Nearest to mean - 2 sd (of the population) among those rated lower; the lower of two such."""
    ratings = [candidate.rating for candidate in ranked]
    target = fmean(ratings) - 2 * pstdev(ratings)
    lower = [candidate for candidate in ranked if Duo(ranked[0], candidate).margin > 0]
    return min(
        lower or ranked[-1:],
        key=lambda candidate: (round(abs(candidate.rating - target), DECIMALS), candidate),
    )


def _uncontradicted(duos: Iterable[Duo], eligible: Callable[[Duo], bool]) -> list[Duo]:
    """The eligible duos, but for those whose texts make one the other way round as well."""
    able = [duo for duo in duos if eligible(duo)]
    texts = {duo.texts for duo in able}
    return [duo for duo in able if duo.texts[::-1] not in texts]


def _one_for_two_texts(duos: Iterable[Duo]) -> list[Duo]:
    """The widest margin first, then by hashes; of the same two texts only the first."""
    ordered = sorted(duos, key=lambda duo: (-duo.margin, *duo.texts, duo.chosen, duo.rejected))
    first: dict[tuple[str, str], Duo] = {}
    for duo in ordered:
        first.setdefault(duo.texts, duo)
    return list(first.values())

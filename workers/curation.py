"""What people said of a prompt's texts, and how far judges agree with them. Pure.

Knows nothing of where people answer. A text is named by the position of its slot (generator and
sample) in the recipe, which holds however many of a prompt's generations failed. Means are reckoned
in fractions, so that equal means are ties and nobody's turn matters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

from workers.grouping import usable
from workers.records import Generation, Slot

#: What a person may give a text.
POINTS = range(1, 6)


@dataclass(frozen=True, slots=True)
class Answer:
    """One person's ratings of one record's texts: slot position -> 1 to 5."""

    record_id: str
    user: str
    ratings: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class PeoplesRating:
    """What the people who answered made of one record.

    `ratings` are means and `counts` the number of people, both by slot position; `annotators` are
    all who rated any of its texts. `disagreement` is in points, see `disagreement`; None if no text
    was rated by two.
    """

    ratings: Mapping[int, float]
    counts: Mapping[int, int]
    annotators: int
    disagreement: float | None


def latest(answers: Iterable[Answer]) -> dict[str, list[Mapping[int, int]]]:
    """What each person said last of each record, one mapping a person, by record id.

    Whatever is no whole number from 1 to 5 is no rating; who has none left is not counted.
    """
    records: dict[str, dict[str, Mapping[int, int]]] = {}
    for answer in answers:
        given = {slot: points for slot, points in answer.ratings.items() if _counts(points)}
        records.setdefault(answer.record_id, {})[answer.user] = given
    said = {record: [one for one in by.values() if one] for record, by in records.items()}
    return {record: each for record, each in said.items() if each}


def summarise(answers: Iterable[Answer]) -> dict[str, PeoplesRating]:
    """The people's rating of each record that was rated at all, by record id; see `latest`."""
    return {record: _summary(each) for record, each in latest(answers).items()}


def _summary(each: Sequence[Mapping[int, int]]) -> PeoplesRating:
    slots = sorted({slot for one in each for slot in one})
    points = {slot: [one[slot] for one in each if slot in one] for slot in slots}
    return PeoplesRating(
        {slot: float(Fraction(sum(given), len(given))) for slot, given in points.items()},
        {slot: len(given) for slot, given in points.items()},
        len(each),
        disagreement(points.values()),
    )


def disagreement(points: Iterable[Sequence[int]]) -> float | None:
    """How far two people are apart on a text, in points; None if no text was rated by two.

    The mean over texts of the mean difference over all pairs of people: the observed disagreement
    of Krippendorff's alpha (Computing Krippendorff's Alpha-Reliability, 2011) with the absolute
    difference as its metric. For two people it is max - min; that one grows with every further
    person, so that texts rated by many would look disputed.
    """
    means = [
        Fraction(sum(abs(one - other) for one, other in pairs), len(pairs))
        for given in points
        if (pairs := list(combinations(given, 2)))
    ]
    return float(sum(means) / len(means)) if means else None


def winning(
    generations: Sequence[Generation],
    judged: Sequence[float | None],
    slots: Sequence[Slot],
    people: PeoplesRating,
) -> tuple[float | None, ...]:
    """The rating of each usable generation: the people's mean where there is one, else `judged`.

    `judged` are the judges' ratings of the usable ones among `generations`, in their order; `slots`
    are all of the recipe's, to whose positions people's ratings refer.

    Raises: ValueError if `judged` is of another length.
    """
    texts = usable(generations)
    if len(texts) != len(judged):
        raise ValueError(f"{len(texts)} usable generations, but {len(judged)} ratings")
    positions = {slot: position for position, slot in enumerate(slots)}
    return tuple(
        people.ratings.get(positions.get(text.slot, -1), rating)
        for text, rating in zip(texts, judged, strict=True)
    )


class _Preferences:
    """How often two sides prefer the same of two texts, with their ties and without."""

    def __init__(self) -> None:
        self.same = self.pairs = self.strict_same = self.strict_pairs = 0

    def add(self, ours: Sequence[float | None], theirs: Sequence[float | None]) -> None:
        both = [
            (one, other)
            for one, other in zip(ours, theirs, strict=True)
            if one is not None and other is not None
        ]
        for (a, x), (b, y) in combinations(both, 2):
            same = _sign(a, b) == _sign(x, y)
            self.pairs += 1
            self.same += same
            if a != b and x != y:
                self.strict_pairs += 1
                self.strict_same += same

    def __str__(self) -> str:
        strict = _share(self.strict_same, self.strict_pairs)
        return f"{_share(self.same, self.pairs)} with ties, {strict} without"


class Agreement:
    """How far judges and people agree, over prompts, as MT-bench reports it (arXiv 2306.05685).

    Two sides agree on a pair of texts if they prefer the same one, or both neither: by chance on a
    third of the pairs. Without ties, pairs count of which both prefer one text: by chance a half.
    There it is single votes that are compared; here the people's mean with the jury's.
    """

    def __init__(self) -> None:
        self._judges, self._people = _Preferences(), _Preferences()
        self._prompts = self._texts = self._shared = 0
        self._apart = Fraction(0)

    def add(
        self,
        judge_ratings: Sequence[float | None],
        people_ratings: Sequence[float | None],
        each: Sequence[Mapping[int, int]] = (),
    ) -> None:
        """Add one prompt: the ratings of the same texts, None where a side has none.

        `each` are the single people's ratings of it, as `latest` has them.

        Raises: ValueError if the lengths differ.
        """
        self._judges.add(judge_ratings, people_ratings)
        differences = [
            abs(Fraction(ours) - Fraction(theirs))
            for ours, theirs in zip(judge_ratings, people_ratings, strict=True)
            if ours is not None and theirs is not None
        ]
        self._prompts += bool(differences)
        self._texts += len(differences)
        self._apart += sum(differences)
        self._shared += len(each) > 1
        for one, other in combinations(each, 2):
            slots = sorted(one.keys() & other.keys())
            self._people.add([one[slot] for slot in slots], [other[slot] for slot in slots])

    def lines(self) -> list[str]:
        """The figures for people to read, one line each."""
        if not self._texts:
            lines = ["judges and people: no text was rated by both"]
        else:
            apart = float(self._apart / self._texts)
            lines = [
                f"judges and people: {self._prompts} prompts, {self._texts} texts, "
                f"{self._judges.pairs} pairs of texts rated by both",
                f"  same preference: {self._judges}",
                f"  ratings apart by {apart:.2f} points on average",
            ]
        if not self._people.pairs:
            return [*lines, "people among themselves: no two texts were rated by the same two"]
        return [
            *lines,
            f"people among themselves: {self._shared} prompts answered by several, "
            f"{self._people.pairs} pairs of texts and people",
            f"  same preference: {self._people}",
        ]


def people_to_json(people: PeoplesRating) -> dict[str, Any]:
    """Plain JSON of a people's rating."""
    return {
        "ratings": {str(slot): rating for slot, rating in sorted(people.ratings.items())},
        "counts": {str(slot): count for slot, count in sorted(people.counts.items())},
        "annotators": people.annotators,
        "disagreement": people.disagreement,
    }


def people_from_json(data: Mapping[str, Any]) -> PeoplesRating:
    """The people's rating that `people_to_json` made plain."""
    return PeoplesRating(
        {int(slot): float(rating) for slot, rating in data["ratings"].items()},
        {int(slot): int(count) for slot, count in data["counts"].items()},
        data["annotators"],
        data["disagreement"],
    )


def _counts(points: object) -> bool:
    return isinstance(points, int) and not isinstance(points, bool) and points in POINTS


def _sign(one: float, other: float) -> int:
    return (one > other) - (one < other)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % ({part} of {whole})" if whole else "no pairs"

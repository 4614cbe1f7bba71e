"""Pairs by people's ratings: whose text is meant does not depend on the recipe's order by now."""

from pathlib import Path

import yaml

from producer.curation import pairs_by_people
from tests.mill import recipe
from workers.ledger import Concluded
from workers.recipe import Recipe
from workers.recipe_file import load
from workers.records import PAIRED, Generation, Judgement, Pair, Prompt, Rating

PEOPLE = {"ratings": {"0": 1.0, "1": 5.0}, "counts": {"0": 1, "1": 1}, "annotators": 1}


def loaded(folder: Path, *, swapped: bool) -> Recipe:
    data = recipe("http://127.0.0.1:9/v1", {"stdin": True})
    if swapped:
        data["generators"].reverse()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return load(str(folder / "recipe.yaml"))


def judged(*, second: float = 1.0) -> Concluded:
    generations = (
        Generation("a", "model-a", text="the judge's"),
        Generation("b", "model-b", text="people's"),
    )
    ratings = (Rating(5.0, ""), Rating(second, ""))
    judgement = Judgement("judge", "judge-model", "overall-rating", ratings, (0, 1))
    pair = Pair("the judge's", "model-a", 5.0, "people's", "model-b", second)
    made = (pair,)
    return Concluded("key", PAIRED, None, made, generations, (judgement,), Prompt("say"))


def test_swapped_generators_turn_nobodys_preference(tmp_path: Path) -> None:
    people = {**PEOPLE, "disagreement": None}
    for swapped in (False, True):
        (pair,) = pairs_by_people(loaded(tmp_path, swapped=swapped), judged(), people)
        assert (pair.chosen, pair.chosen_model) == ("people's", "model-b")
        assert (pair.chosen_rating, pair.rejected_rating) == (5.0, 1.0)


def test_a_text_that_people_did_not_rate_keeps_the_judges_rating(tmp_path: Path) -> None:
    people = {**PEOPLE, "ratings": {"1": 3.0}, "counts": {"1": 1}, "disagreement": None}
    (pair,) = pairs_by_people(loaded(tmp_path, swapped=False), judged(), people)
    assert (pair.chosen_rating, pair.rejected_rating) == (5.0, 3.0)


def test_people_who_tie_make_no_pair(tmp_path: Path) -> None:
    people = {**PEOPLE, "ratings": {"0": 3.0, "1": 3.0}, "disagreement": None}
    assert pairs_by_people(loaded(tmp_path, swapped=False), judged(), people) == ()

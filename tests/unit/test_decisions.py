"""How often the rule is right, on a small simulation of what `benchmarks/decisions.py` measures."""

import pytest

from benchmarks.decisions import simulate, simulate_vetoes
from pipeline.evaluation.champion_rule import VETO_LEVEL
from pipeline.params import load_params
from tests.conftest import REPOSITORY

PARAMS = load_params(REPOSITORY / "params.yaml").register


@pytest.mark.parametrize(("disagreement", "place"), [(0.05, 1), (0.08, 1), (0.08, 2)])
def test_equally_good_models_are_rarely_promoted(disagreement: float, place: int) -> None:
    assert simulate(PARAMS, disagreement=disagreement, place=place, gain=0.0, pairs=200).promoted <= 0.025


@pytest.mark.parametrize(("disagreement", "place"), [(0.05, 1), (0.05, 10), (0.08, 1)])
def test_a_model_one_point_better_is_promoted_in_four_of_five_cases(disagreement: float, place: int) -> None:
    assert simulate(PARAMS, disagreement=disagreement, place=place, gain=0.01, pairs=200).promoted >= 0.8


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize(("images", "disagreement"), [(100, 0.08), (100, 0.2), (1000, 0.08), (1000, 0.2)])
def test_equally_good_models_are_rarely_vetoed_by_a_class(classes: int, images: int, disagreement: float) -> None:
    setting = {"classes": classes, "images": images, "disagreement": disagreement}
    assert simulate_vetoes(PARAMS.max_class_drop, **setting, pairs=200) <= VETO_LEVEL


@pytest.mark.parametrize(("classes", "drop"), [(2, 0.06), (10, 0.07), (100, 0.08)])
def test_a_class_that_falls_is_found_in_four_of_five_cases(classes: int, drop: float) -> None:
    setting = {"classes": classes, "images": 1000, "disagreement": 0.2}
    assert simulate_vetoes(PARAMS.max_class_drop, **setting, drop=drop, pairs=100) >= 0.8

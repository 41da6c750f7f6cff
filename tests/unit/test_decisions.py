"""How often the rule is right, on a small simulation of what `benchmarks/decisions.py` measures."""

import pytest

from benchmarks.decisions import simulate
from pipeline.params import load_params
from tests.conftest import REPOSITORY

PARAMS = load_params(REPOSITORY / "params.yaml").register


@pytest.mark.parametrize(("disagreement", "place"), [(0.05, 1), (0.08, 1), (0.08, 2)])
def test_equally_good_models_are_rarely_promoted(disagreement: float, place: int) -> None:
    assert simulate(PARAMS, disagreement=disagreement, place=place, gain=0.0, pairs=200).promoted <= 0.025


@pytest.mark.parametrize(("disagreement", "place"), [(0.05, 1), (0.05, 10), (0.08, 1)])
def test_a_model_one_point_better_is_promoted_in_four_of_five_cases(disagreement: float, place: int) -> None:
    assert simulate(PARAMS, disagreement=disagreement, place=place, gain=0.01, pairs=200).promoted >= 0.8

"""The champion rule on counts alone: what promotes, what vetoes, what the number of challengers does."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pipeline.evaluation.champion_rule import (
    Case,
    Decision,
    decide,
    falling_classes,
    render_json,
    render_page,
    significance_level,
)
from pipeline.evaluation.comparison import Comparison, Pairs
from pipeline.params import RegisterParams, load_params
from tests.conftest import REPOSITORY

IMAGES = 10_000
PARAMS = load_params(REPOSITORY / "params.yaml").register


def case(gained: int, lost: int, *, place: int = 1, ece: float = 0.02, cost: int = 1000, **classes: Pairs) -> Case:
    overall = Pairs(IMAGES - 600 - gained - lost, 600, gained, lost)
    comparison = Comparison(overall, classes or {"Bag": overall}, 0.02, ece)
    return Case(challenger="4", champion="3", comparison=comparison, place=place, multiply_adds=cost)


def params(**changes: Any) -> RegisterParams:
    return replace(PARAMS, **changes)


def test_the_levels_of_all_challengers_together_never_exceed_alpha() -> None:
    levels = [significance_level(0.05, place) for place in range(1, 5000)]
    assert levels == sorted(levels, reverse=True)
    assert all(earlier > later > 0 for earlier, later in pairwise(levels))
    assert 0.0499 < sum(levels) < 0.05


@pytest.mark.parametrize(
    ("gained", "lost", "outcome", "ground"),
    [
        (200, 100, "champion", "better"),
        (100, 200, "not promoted", "worse"),
        (100, 100, "challenger", "tie"),
        (0, 0, "challenger", "tie"),
        (110, 100, "challenger", "not shown to be better"),
        (100, 110, "challenger", "not shown to be better"),
        (19, 0, "challenger", "not shown to be better"),  # certain, and less than 0.2 points
        (20, 0, "champion", "better"),
    ],
)
def test_better(gained: int, lost: int, outcome: str, ground: str) -> None:
    decision = decide(case(gained, lost), params(rule="better"))
    assert (decision.outcome, decision.ground) == (outcome, ground)


@pytest.mark.parametrize(
    ("gained", "lost", "outcome", "ground"),
    [
        (200, 100, "champion", "not worse"),
        (100, 100, "champion", "not worse"),  # +0.00 points, interval -0.32 to +0.32
        (0, 0, "champion", "not worse"),
        (99, 100, "challenger", "may be worse"),  # the interval allows it, the point estimate does not
        (400, 400, "challenger", "tie"),  # too noisy to rule out a loss of 0.5 points
        (410, 400, "challenger", "may be worse"),
        (100, 200, "not promoted", "worse"),
    ],
)
def test_not_worse(gained: int, lost: int, outcome: str, ground: str) -> None:
    decision = decide(case(gained, lost), params(rule="not_worse"))
    assert (decision.outcome, decision.ground) == (outcome, ground)


@pytest.mark.parametrize("rule", ["better", "not_worse"])
def test_more_gained_and_less_lost_never_costs_a_promotion(rule: str) -> None:
    rank = {"not promoted": 0, "challenger": 1, "champion": 2}
    for lost in (0, 50, 100):
        outcomes = [rank[decide(case(gained, lost), params(rule=rule)).outcome] for gained in range(0, 260, 5)]
        assert outcomes == sorted(outcomes)
        assert outcomes[-1] == 2
    for gained in (50, 100):
        outcomes = [rank[decide(case(gained, lost), params(rule=rule)).outcome] for lost in range(0, 260, 5)]
        assert outcomes == sorted(outcomes, reverse=True)
        assert outcomes[-1] == 0


@pytest.mark.parametrize("rule", ["better", "not_worse"])
def test_a_later_challenger_is_never_promoted_where_an_earlier_one_is_not(rule: str) -> None:
    for gained in range(100, 220, 6):
        promoted = [
            decide(case(gained, 100, place=place), params(rule=rule)).outcome == "champion"
            for place in (1, 2, 3, 10, 100)
        ]
        assert promoted == sorted(promoted, reverse=True)


def test_the_place_can_decide() -> None:
    assert decide(case(140, 100, place=1), PARAMS).outcome == "champion"  # p = 0.0098
    assert decide(case(140, 100, place=2), PARAMS).outcome == "challenger"  # of at most 0.0083


FALLEN = Pairs(both_right=780, both_wrong=150, gained=10, lost=60)  # 5 points, interval about -6.6 to -3.5
UNCERTAIN = Pairs(both_right=10, both_wrong=2, gained=3, lost=5)  # 10 points of twenty images, interval around zero
SLIGHTLY = Pairs(both_right=9700, both_wrong=100, gained=0, lost=200)  # 2 points, certainly


@pytest.mark.parametrize("rule", ["better", "not_worse"])
@pytest.mark.parametrize(
    ("change", "veto"),
    [
        ({"Shirt": FALLEN}, "recall of Shirt falls by 5.00 points (95% interval"),
        ({"ece": 0.11}, "its calibration error is 0.1100, at most 0.1 is allowed (register.max_ece)"),
        ({"ece": float("nan")}, "its calibration error is nan"),
        (
            {"cost": 100_000_001},
            "it takes 100,000,001 multiply-adds an image, at most 100,000,000 are allowed (register.max_multiply_adds)",
        ),
    ],
)
def test_each_veto_stands_alone_and_is_named(rule: str, change: dict[str, Any], veto: str) -> None:
    decision = decide(case(300, 100, **change), params(rule=rule))
    assert (decision.outcome, decision.ground) == ("not promoted", "vetoed")
    assert f"Vetoed: {veto}" in decision.reason
    assert len(decision.evidence["vetoes"]) == 1


@pytest.mark.parametrize("change", [{"Shirt": UNCERTAIN}, {"Shirt": SLIGHTLY}, {"ece": 0.1}, {"cost": 100_000_000}])
def test_what_is_uncertain_small_or_at_its_limit_vetoes_nothing(change: dict[str, Any]) -> None:
    decision = decide(case(300, 100, **change), PARAMS)
    assert decision.outcome == "champion"
    assert decision.evidence["vetoes"] == ()


def test_a_class_vetoes_by_its_p_value_corrected_for_the_number_of_classes() -> None:
    fallen, equal = Pairs(50, 20, 9, 21), Pairs(50, 20, 15, 15)  # of 100 images; one-sided p = 0.021
    assert falling_classes({"Shirt": fallen}, 0.03) == {"Shirt": pytest.approx(0.0214, abs=1e-4)}
    assert falling_classes({"Shirt": fallen, "Bag": equal, "Coat": equal}, 0.03) == {}
    agreeing = Pairs(96, 2, 1, 1)  # too few pairs to fall by three points: not counted
    assert list(falling_classes({"Bag": agreeing, "Coat": agreeing, "Shirt": fallen}, 0.03)) == ["Shirt"]


def test_all_vetoes_are_named_at_once() -> None:
    decision = decide(case(300, 100, ece=0.2, cost=10**9, Shirt=FALLEN), PARAMS)
    assert len(decision.evidence["vetoes"]) == 3
    assert all(veto in decision.reason for veto in decision.evidence["vetoes"])


def test_the_paragraph_says_what_was_found_and_what_was_asked() -> None:
    assert decide(case(61, 58, place=3), PARAMS).reason == (
        "Version 4 is not promoted and waits as challenger: it is right on 61 images that version 3 gets wrong, wrong "
        "on 58 that version 3 gets right; difference +0.03 points, 95% interval -0.18 to +0.24. McNemar's exact test "
        "(mid-p) gives p = 0.78; of challenger 3 on these 10,000 test images the rule `better` asks for p at most "
        "0.05 / (3 x 4) = 0.0042, and a gain of 0.20 points or more. A true gain of 0.40 points would be found in four "
        "of five cases."
    )


def test_identical_answers_say_nothing_of_a_gain_that_would_be_found() -> None:
    decision = decide(case(0, 0), PARAMS)
    assert (decision.outcome, decision.ground, decision.evidence["detectable_gain"]) == ("challenger", "tie", None)
    assert "true gain" not in decision.reason


def test_wear_is_told_from_the_first_challenger_beyond_the_limit() -> None:
    limit = PARAMS.worn_out_after
    assert "worn out" not in decide(case(61, 58, place=limit), PARAMS).reason
    worn = decide(case(61, 58, place=limit + 1), PARAMS).reason
    assert f"worn out: {limit + 1} challengers were judged on them, which is more than {limit}" in worn


def test_the_record_holds_the_parameters_and_the_counts() -> None:
    record = render_json(decide(case(61, 58), PARAMS), {"name": "tiny"}, PARAMS)
    assert record["params"]["alpha"] == PARAMS.alpha
    assert record["comparison"]["gained"] == 61
    assert record["name"] == "tiny"


def test_a_page_survives_a_class_with_a_bar_in_its_name() -> None:
    page = render_page(decide(case(300, 100, **{"a|b": FALLEN}), PARAMS), "Decision")
    assert r"a\|b" in page
    assert render_page(Decision("champion", "It is the first.", "first model"), "Decision").count("#") == 1

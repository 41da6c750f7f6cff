"""The outcome of a retraining, derived from the registration of its model."""

import pytest

from pipeline.evaluation.champion_rule import Decision, Outcome
from pipeline.registry.registration import Registration
from pipeline.retraining.run import read_decision


def registered(outcome: Outcome, *aliases: str) -> Registration:
    return Registration("tiny", "2", aliases, Decision(outcome, "The paragraph."), is_new=False)


@pytest.mark.parametrize("outcome", ["champion", "challenger", "not promoted"])
def test_a_decision_of_this_retraining_is_its_outcome(outcome: Outcome) -> None:
    assert read_decision(registered(outcome, outcome), is_new=True) == (outcome, "The paragraph.")


@pytest.mark.parametrize("is_new", [True, False])
def test_a_rejection_is_the_outcome_whether_the_model_is_new_or_not(is_new: bool) -> None:
    assert read_decision(registered("rejected"), is_new=is_new) == ("rejected", "The paragraph.")


@pytest.mark.parametrize(
    ("is_new", "aliases", "expected"),
    [
        (False, ("champion",), "tiny version 2 (champion), which existed before this retraining"),
        (False, (), "tiny version 2, which existed before this retraining"),  # it was rolled back
        (True, (), "tiny version 2, which is no longer the champion"),
    ],
)
def test_only_a_model_that_this_retraining_made_champion_is_promoted(
    is_new: bool, aliases: tuple[str, ...], expected: str
) -> None:
    outcome, reason = read_decision(registered("champion", *aliases), is_new=is_new)
    assert outcome == "not promoted"
    assert expected in reason
    assert "The paragraph." in reason

"""What a retraining says of the model that its stages left."""

import pytest

from pipeline.evaluation.champion_rule import Decision, Outcome
from pipeline.registry.registration import Registration
from pipeline.retraining.run import read_decision


def registered(outcome: Outcome, *aliases: str) -> Registration:
    return Registration("tiny", "2", aliases, Decision(outcome, "The paragraph."), is_new=False)


@pytest.mark.parametrize("outcome", ["champion", "challenger", "not promoted"])
def test_what_was_decided_in_this_retraining_is_its_outcome(outcome: Outcome) -> None:
    assert read_decision(registered(outcome, outcome), is_new=True) == (outcome, "The paragraph.")


@pytest.mark.parametrize("is_new", [True, False])
def test_a_rejection_is_an_outcome_whenever_the_model_was_made(is_new: bool) -> None:
    assert read_decision(registered("rejected"), is_new=is_new) == ("rejected", "The paragraph.")


@pytest.mark.parametrize(
    ("is_new", "aliases", "told"),
    [
        (False, ("champion",), "tiny version 2 (champion), which existed before this retraining"),
        (False, (), "tiny version 2, which existed before this retraining"),  # it was rolled back
        (True, (), "tiny version 2, which is no longer the champion"),
    ],
)
def test_only_a_model_that_is_champion_by_this_retraining_is_promoted(
    is_new: bool, aliases: tuple[str, ...], told: str
) -> None:
    outcome, reason = read_decision(registered("champion", *aliases), is_new=is_new)
    assert outcome == "not promoted"
    assert told in reason
    assert "The paragraph." in reason

"""What a retraining says of the model that its stages left."""

import pytest

from pipeline.flows.retraining import read_decision
from pipeline.reports.champion_rule import Decision, Outcome
from pipeline.tracking.registry import Registration

BEGAN = 1000.0


def registered(outcome: Outcome, created: float | None, *aliases: str) -> Registration:
    version = None if created is None else "2"
    return Registration("tiny", version, aliases, Decision(outcome, "The paragraph."), is_new=False, created=created)


@pytest.mark.parametrize("outcome", ["champion", "challenger", "not promoted"])
def test_what_was_decided_in_this_retraining_is_its_outcome(outcome: Outcome) -> None:
    assert read_decision(registered(outcome, BEGAN + 60, outcome), BEGAN) == (outcome, "The paragraph.")


@pytest.mark.parametrize("created", [None, BEGAN - 60])
def test_a_rejection_is_an_outcome_whenever_the_model_was_made(created: float | None) -> None:
    assert read_decision(registered("rejected", created), BEGAN) == ("rejected", "The paragraph.")


@pytest.mark.parametrize(
    ("created", "aliases", "told"),
    [
        (BEGAN - 60, ("champion",), "tiny version 2 (champion), which was there before this retraining"),
        (BEGAN - 60, (), "tiny version 2, which was there before this retraining"),  # it was rolled back
        (BEGAN + 60, (), "tiny version 2, which is no longer the champion"),
    ],
)
def test_only_a_model_that_is_champion_by_this_retraining_is_promoted(
    created: float, aliases: tuple[str, ...], told: str
) -> None:
    outcome, reason = read_decision(registered("champion", created, *aliases), BEGAN)
    assert outcome == "not promoted"
    assert told in reason
    assert "The paragraph." in reason

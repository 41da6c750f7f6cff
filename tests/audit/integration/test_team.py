"""`pipeline verify` on a team's stores: PostgreSQL and an S3-compatible store."""

from pathlib import Path

import pytest

from pipeline.audit.verification import verify
from tests.integration.test_team import Team, make_database, objects, of_the_team, team

__all__ = ["make_database", "objects", "of_the_team", "team"]  # fixtures

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("team")]


def test_verify_finds_a_lost_model_file_in_a_team_store(of_the_team: Team) -> None:
    assert not verify(Path()).findings
    keys = [key for key in of_the_team.objects.read("runs") if key.endswith("/data/model.keras")]
    lost = of_the_team.objects.read("runs")[keys[0]]
    of_the_team.objects.client.delete_object(Bucket="runs", Key=keys[0])
    problems = [finding.problem for finding in verify(Path()).findings]
    of_the_team.objects.client.put_object(Bucket="runs", Key=keys[0], Body=lost)
    assert len(problems) == 1
    assert "model file" in problems[0]

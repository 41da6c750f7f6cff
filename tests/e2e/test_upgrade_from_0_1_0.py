"""A project folder of release 0.1.0 with today's code: what is taken over, what is stale, and which commands work."""

import json
from typing import Any

import pytest

from tests.conftest import Project
from tests.e2e.release_0_1_0 import (
    OPTIONS,
    RELEASE,
    pipeline,
    pipeline_json,
    read_record,
    release,
    serve_until,
    upgraded,
)
from tests.e2e.test_repro import aliases_of, runs_of

__all__ = ["release", "upgraded"]  # fixtures

for room in ("audit", "care", "retraining", "servers"):  # rooms that this project may lack
    pytest.importorskip(f"pipeline.{room}")

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("release-0.1.0")]

BRANCHES = ("git", "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain")


def test_versions_history_comparison_and_files_are_taken_over(release: Project, upgraded: Project) -> None:
    moves = pipeline_json(upgraded, "history")["moves"]
    recorded = read_record(release, "history")["moves"]
    assert moves[:-1] == recorded
    assert (moves[-1]["kind"], moves[-1]["state"], moves[-1]["target"]) == ("rollback", "done", "1")
    assert aliases_of(upgraded) == {("tiny", "champion"): "1"}
    assert without_aliases(pipeline_json(upgraded, "versions")) == without_aliases(read_record(release, "versions"))
    expected = read_record(release, "comparison") | {"left_out": []}  # today, classes may differ
    assert pipeline_json(upgraded, "compare", "1", "2") == expected
    for version in ("1", "2"):
        assert "decision.reason" in pipeline(upgraded, "lineage", version)
    upgraded.run("dvc", "checkout", "--allow-missing")  # the lock of the release has no exported model
    assert "all agree" in pipeline(upgraded, "verify")


def without_aliases(listed: dict[str, Any]) -> list[dict[str, Any]]:
    """The versions that `pipeline versions --json` printed. Their aliases differ after the killed move is completed."""
    return [{key: value for key, value in version.items() if key != "aliases"} for version in listed["versions"]]


def test_a_version_is_reproduced_by_its_own_commit(upgraded: Project) -> None:
    assert pipeline_json(upgraded, "reproduce", "2")["outcome"] == "identical"  # of a retraining, with a batch


def test_a_retraining_keeps_quarantine_and_branches_and_finds_the_version(upgraded: Project) -> None:
    (former,) = upgraded.run(*BRANCHES).stdout.split()
    result = pipeline_json(upgraded, "retrain")
    assert result["version"] == "2"
    assert result["taken"] == ["march.npz"]
    assert [batch["name"] for batch in result["quarantined"]] == ["bad.npz"]
    assert former in upgraded.run(*BRANCHES).stdout.split()
    assert "RUNNING" not in [status for _, status in runs_of(upgraded)]  # the killed training's, too


def test_schedules_are_taken_over_with_todays_flows(upgraded: Project) -> None:
    (schedule,) = serve_until(upgraded, lambda: pipeline_json(upgraded, "schedule", "list"))
    assert (schedule["flow"], schedule["rule"], schedule["active"]) == ("retrain", "0 3 * * *", True)


def test_a_backup_of_the_release_is_restored(release: Project, upgraded: Project) -> None:
    (backup,) = (release.path.parent / "backups").iterdir()
    pipeline(upgraded, "restore", str(backup), "--replace")
    moves = pipeline_json(upgraded, "history")["moves"]
    assert moves == read_record(release, "history")["moves"]
    assert pipeline_json(upgraded, "versions") == read_record(release, "versions")


def test_every_command_and_option_still_exists(release: Project, upgraded: Project) -> None:
    today = json.loads(upgraded.run("python", "-c", OPTIONS).stdout)
    assert missing(read_record(release, "options"), today) == []


def missing(former: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """List the options, and the commands by name, that today's command line lacks."""
    lacking = [option for option in former[""] if option not in today[""]]
    for name in former.keys() - {""}:
        lacking += [f"{name} {each}" for each in missing(former[name], today[name])] if name in today else [name]
    return lacking


def test_deployments_of_the_release_load_todays_flows(release: Project, upgraded: Project) -> None:
    deployed = release.run("git", "show", f"{RELEASE}:prefect.yaml").stdout
    entrypoints = [line.split()[1] for line in deployed.splitlines() if "entrypoint:" in line]
    assert entrypoints
    for entrypoint in entrypoints:
        load = f"from prefect.flows import load_flow_from_entrypoint as load; print(load({entrypoint!r}).name)"
        hint, name = upgraded.run("python", "-c", load).stdout.splitlines()[-2:]
        assert "prefect deploy --all" in hint
        assert name.replace("-", "_") == entrypoint.rpartition(":")[2]

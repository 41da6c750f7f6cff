"""Rooms are deleted as docs/rooms.md says: without all of them the pipeline runs, without any one the rest is whole."""

import sys
from pathlib import Path

import pytest
import yaml

from pipeline.rooms import find_rooms
from tests.conftest import Project, create_project, stages_that_ran

ROOMS = list(find_rooms())


def delete(project: Project, *rooms: str) -> None:
    """Delete rooms, those that import them, their sections of params.yaml and their entries in prefect.yaml."""
    found = find_rooms()
    paths = project.run(sys.executable, "-m", "pipeline.rooms", *rooms).stdout.split()
    deleted = [path.removeprefix("pipeline/") for path in paths if path.startswith("pipeline/")]
    project.run("git", "rm", "-r", "--quiet", *paths)
    params = yaml.safe_load((project.path / "params.yaml").read_text())
    for section in [found[name].section for name in deleted]:
        if section:
            del params[section[0]]
    (project.path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True))
    if (project.path / "prefect.yaml").exists():
        deployed = yaml.safe_load((project.path / "prefect.yaml").read_text())
        gone = {flow for name in deleted for flow in found[name].flows}
        deployed["deployments"] = [entry for entry in deployed["deployments"] if entry["name"] not in gone]
        (project.path / "prefect.yaml").write_text(yaml.safe_dump(deployed, sort_keys=False))
    project.commit(f"delete {', '.join(deleted)}")


@pytest.mark.parametrize("room", ROOMS)
def test_without_a_room_the_rest_imports_is_linted_and_its_tests_are_collected(project: Project, room: str) -> None:
    delete(project, room)
    assert "Run the pipeline" in project.run(sys.executable, "-m", "pipeline.cli", "--help").stdout
    project.run("ruff", "check", ".")
    project.run("lint-imports")
    project.run(sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", "tests")


def test_without_its_room_a_section_of_params_is_refused_and_says_what_to_do(project: Project) -> None:
    before = (project.path / "params.yaml").read_text()
    delete(project, *ROOMS)
    (project.path / "params.yaml").write_text(before)
    refused = project.run(sys.executable, "-m", "pipeline.cli", "params", check=False)
    assert refused.returncode == 1
    for room in find_rooms().values():
        if room.section:
            assert f"{room.section[0]} is not a parameter" in refused.stdout
    assert "No part of this project reads this section: delete it if its room was deleted" in refused.stdout


def test_without_rooms_the_pipeline_and_the_tests_of_the_core_run(tmp_path: Path) -> None:
    project = create_project(tmp_path / "project", tmp_path / "home")
    delete(project, *ROOMS)
    assert not list((project.path / "pipeline").glob("*/room.py"))
    # By the path, the processes of the tests import this project, and not the one that is installed.
    tests = ("tests/unit", "tests/integration/test_remedies.py", "tests/integration/test_registry_commands.py")
    project.run(
        sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *tests, PYTHONPATH=str(project.path)
    )

    project.set_params(**{"dataset.name": "tiny"})
    (project.path / "dvc.lock").unlink()
    names = list(yaml.safe_load((project.path / "dvc.yaml").read_text())["stages"])
    assert stages_that_ran(project.repro().stdout) == names
    project.commit("lock")
    printed = project.run(sys.executable, "-m", "pipeline.cli", "run", "--force", "evaluate").stdout
    assert "version 1 (champion)" in printed
    for command in ("status", "versions", "history", "sync", "params", "schema"):
        project.run(sys.executable, "-m", "pipeline.cli", command)

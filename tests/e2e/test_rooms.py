"""Rooms are deleted as docs/rooms.md says: without all of them the pipeline runs, without any one the rest is whole."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.rooms import find_rooms
from tests.conftest import Project, create_project, stages_that_ran

ROOMS = list(find_rooms())
# Tests of the parameters, commands and messages, to which rooms add something.
CHOSEN_TESTS = "unit and (test_rooms or test_cli or test_params or test_workspace or test_declarations)"
CHOSEN_TESTS += " or test_remedies or test_registry_commands"
IMPORT = re.compile(r"^ *(?:from|import) ((?:pipeline|tests)(?:\.\w+)*)", re.MULTILINE)


def delete(project: Project, *rooms: str) -> None:
    """Delete rooms, and those that import them, with what names them."""
    project.run(sys.executable, "-m", "pipeline.room_deletion", *rooms)
    project.commit(f"delete {', '.join(rooms)}")


def find_broken_imports(root: Path) -> list[str]:
    """List the imports of this project's modules that are not there, except in tests that are then skipped."""
    found = []
    for file in [*root.glob("pipeline/**/*.py"), *root.glob("tests/**/*.py")]:
        text = file.read_text()
        for name in IMPORT.findall(text) if "importorskip" not in text else ():
            module = root.joinpath(*name.split("."))
            if not (module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()):
                found.append(f"{file.relative_to(root)}: {name}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_without_a_room_the_rest_imports_and_is_linted(project: Project, room: str) -> None:
    delete(project, room)
    assert find_broken_imports(project.path) == []
    assert "Run the pipeline" in project.run(sys.executable, "-m", "pipeline.cli", "--help").stdout
    project.run("ruff", "check", ".")
    project.run("lint-imports")


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
    # All tests are collected, which imports them. PYTHONPATH comes before the installed project, which has its rooms.
    pytest_chosen = ("pytest", "--quiet", "-p", "no:cacheprovider", "-k", CHOSEN_TESTS, "tests")
    project.run(sys.executable, "-m", *pytest_chosen, PYTHONPATH=str(project.path))

    project.run(sys.executable, "-m", "mkdocs", "build", "--strict", PYTHONPATH=str(project.path))
    project.set_params(**{"dataset.name": "tiny"})
    (project.path / "dvc.lock").unlink()
    names = list(yaml.safe_load((project.path / "dvc.yaml").read_text())["stages"])
    assert stages_that_ran(project.repro().stdout) == names
    project.commit("lock")
    printed = project.run(sys.executable, "-m", "pipeline.cli", "run", "--force", "evaluate").stdout
    assert "version 1 (champion)" in printed
    for command in ("status", "versions", "history", "sync", "params", "schema"):
        project.run(sys.executable, "-m", "pipeline.cli", command)

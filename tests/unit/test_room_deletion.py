"""Deleting a room deletes what names it; the rest of the project stays readable."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.errors import WorkspaceError
from pipeline.params import load_params
from pipeline.room_deletion import _list_commands, delete_rooms
from pipeline.rooms import find_dependents, find_rooms, list_paths
from tests.conftest import REPOSITORY

ROOMS = find_rooms()
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")
FILES = ("Makefile", "mkdocs.yml", "params.yaml", "prefect.yaml", "compose.yaml", ".env.example", ".gitlab-ci.yml")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files of this project that name rooms, and the rooms themselves."""
    for name in (*FILES, *(path.name for path in REPOSITORY.glob("*.md"))):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    for name in ROOMS:
        shutil.copytree(REPOSITORY / "pipeline" / name, tmp_path / "pipeline" / name)
    return tmp_path


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_names_a_deleted_room(room: str, copy: Path) -> None:
    commands = [command for name in find_dependents([room]) for command in _list_commands(REPOSITORY, name)]
    deleted = delete_rooms(copy, [room])
    assert deleted == find_dependents([room])
    assert [path for path in list_paths(deleted) if (copy / path).exists()] == []
    named = re.compile(rf"\bpipeline (?:{'|'.join(commands)})\b(?!-)")
    pages = [page for page in (*copy.glob("*.md"), *copy.glob("docs/*.md")) if page.name != "CHANGELOG.md"]
    for text in [path.read_text() for path in (*pages, copy / "Makefile")]:
        assert named.findall(text) == []
    assert yaml.safe_load((copy / ".gitlab-ci.yml").read_text()).keys().isdisjoint(commands)
    pages += copy.glob("docs/decisions/*.md")
    gone = {(copy / path).resolve() for path in list_paths(deleted)}
    linked = {(page.parent / link).resolve() for page in pages for link in LINK.findall(page.read_text())}
    assert linked & gone == set()
    assert {
        path for path in list_paths(deleted) if f" {path.removeprefix('docs/')}\n" in (copy / "mkdocs.yml").read_text()
    } == set()


@pytest.mark.parametrize("room", ROOMS)
def test_params_and_deployments_are_those_of_the_other_rooms(room: str, copy: Path) -> None:
    sections = {name: found.section[0] for name, found in ROOMS.items() if found.section}
    before = yaml.safe_load((copy / "params.yaml").read_text())
    deleted = delete_rooms(copy, [room])
    expected = {key: value for key, value in before.items() if key not in {sections.get(name) for name in deleted}}
    assert yaml.safe_load((copy / "params.yaml").read_text()) == expected
    if (copy / "prefect.yaml").exists():
        flows = [flow for name, found in ROOMS.items() if name not in deleted for flow in found.flows]
        entries = yaml.safe_load((copy / "prefect.yaml").read_text())["deployments"]
        assert sorted(entry["name"] for entry in entries) == sorted(flows)
    if (copy / "compose.yaml").exists():
        services = yaml.safe_load((copy / "compose.yaml").read_text())["services"]
        assert {name for found in ROOMS.values() for name in found.servers} & services.keys() == {
            server for name, found in ROOMS.items() if name not in deleted for server in found.servers
        }


def test_an_unknown_room_is_refused_and_nothing_changes(copy: Path) -> None:
    before = load_params(copy / "params.yaml")
    with pytest.raises(WorkspaceError, match=r"(?s)rooms that this project does not have.*found: +garage"):
        delete_rooms(copy, [*ROOMS, "garage"])
    assert load_params(copy / "params.yaml") == before

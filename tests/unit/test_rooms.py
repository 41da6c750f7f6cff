"""Rooms: found by their `room.py`, and unknown to the core."""

import inspect
import re
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest
from typer.main import get_command

from pipeline.cli.__main__ import app
from pipeline.rooms import Room, find_dependents, find_remedy, find_rooms
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "pipeline"
ROOMS = find_rooms()
CORE = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in ROOMS]
# All commands use the servers of `pipeline up` if they are there. The ground finds them, by a file and a lock, and has
# the format of their log: these two modules say whose they are.
EXCEPTIONS = {PACKAGE / "server_addresses.py": "up", PACKAGE / "logs.py": "up"}

MEASURED = re.compile(r"benchmarks/\w+\.md")


def commands_of_rooms() -> set[str]:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    modules = {name: inspect.unwrap(command.callback).__module__ for name, command in commands.items()}
    return {name for name, module in modules.items() if module.split(".")[1] in ROOMS}


def test_the_core_spells_no_name_of_a_room() -> None:
    rooms, commands = "|".join(ROOMS) or "-", "|".join(commands_of_rooms()) or "-"
    named = re.compile(rf"pipeline[./](?:{rooms})\b|pipeline ({commands})\b(?!-)")
    found = [
        f"{path.relative_to(REPOSITORY)}: {match[0]}"
        for path in CORE
        for match in named.finditer(path.read_text())
        if match[1] is None or EXCEPTIONS.get(path) != match[1]
    ]
    assert found == []


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_what_a_room_names_is_there(room: Room) -> None:
    references = [*room.flows.values(), *filter(None, [room.status, room.executor]), *(room.section or ())[1:]]
    assert all(resolve_name(reference) for reference in references)
    assert all(find_spec(server.module) for server in room.servers.values())
    missing = [name for name in room.files if not (REPOSITORY / name).exists()]
    assert not [name for name in missing if not MEASURED.fullmatch(name)]  # a new project has none of these yet


def test_a_task_that_no_room_does_has_another_remedy() -> None:
    assert find_remedy("water the plants", "ask a gardener") == "ask a gardener"


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_says_what_goes_with_a_room(room: str) -> None:
    (row,) = re.findall(rf"^\| `{room}` \|.*$", (REPOSITORY / "docs/rooms.md").read_text(), re.MULTILINE)
    *_, others, _ = row.split("|")
    assert set(find_dependents([room])) == {room} | set(re.findall("`(.+?)`", others)) & ROOMS.keys()


def test_no_room_has_no_dependents() -> None:
    assert find_dependents([]) == []

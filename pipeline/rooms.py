"""The rooms of this project: packages that a copy may delete. Each describes itself in its module `room.py`.

The core finds rooms by this module and imports none of them by name. References are written `module:attribute`. They
are imported when they are used, so that finding the rooms imports nothing else.

`python -m pipeline.rooms ROOM...` prints the paths to delete with rooms: `docs/rooms.md`.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class RoomServer:
    """A server that a room adds to the permanent servers of this project.

    It runs as `python -m MODULE ARGUMENTS --host HOST --port PORT --allowed-hosts NAMES`.
    """

    module: str
    arguments: tuple[str, ...]
    port: int  # the default one
    health: str  # path that responds with status 200 while the server works


@dataclass(frozen=True)
class Room:
    """The parts that a room adds to the project, besides the commands in its module `commands.py`."""

    section: tuple[str, str] | None = None  # its section of params.yaml, and a reference to that section's class
    status: str | None = None  # reference to a function of the workspace: further lines of `pipeline status`
    flows: Mapping[str, str] = field(default_factory=dict)  # deployment: reference to its Prefect flow
    executor: str | None = None  # reference to a function: the context of a `partitions.Executor`, or None to have none
    servers: Mapping[str, RoomServer] = field(default_factory=dict)  # by the name of the option that starts it
    remedies: Mapping[str, str] = field(default_factory=dict)  # task: its command, for messages of the core
    files: tuple[str, ...] = ()  # its files outside its package and its tests, such as its pages in docs/


@cache
def find_rooms() -> dict[str, Room]:
    """Return the rooms of this project by name."""
    names = sorted(path.parent.name for path in PACKAGE.glob("*/room.py"))
    return {name: import_module(f"pipeline.{name}.room").ROOM for name in names}


def find_servers() -> dict[str, RoomServer]:
    """Return the servers that the rooms of this project add, by name."""
    return {name: server for room in find_rooms().values() for name, server in room.servers.items()}


def find_remedy(task: str, otherwise: str) -> str:
    """Return the command of the room that does a task, for a message of the core.

    Args:
        task: a key of `Room.remedies`.
        otherwise: the remedy in a project without that room.
    """
    return next((room.remedies[task] for room in find_rooms().values() if task in room.remedies), otherwise)


def find_dependents(names: Iterable[str]) -> list[str]:
    """Return these rooms and all rooms that import them, sorted by name."""
    found, rooms = set(names), find_rooms()
    texts = {name: [path.read_text("utf-8") for path in (PACKAGE / name).rglob("*.py")] for name in rooms}
    while found and (more := {name for name in rooms.keys() - found if _imports(texts[name], found)}):
        found |= more
    return sorted(found)


def list_paths(names: Iterable[str]) -> list[str]:
    """Return the paths of rooms, relative to the root of the project: packages, tests and other files."""
    rooms = find_rooms()
    return [path for name in names for path in (f"pipeline/{name}", f"tests/{name}", *rooms[name].files)]


def _imports(texts: Iterable[str], names: Iterable[str]) -> bool:
    imported = re.compile(rf"^ *(?:from|import) pipeline\.(?:{'|'.join(names)})\b", re.MULTILINE)
    return any(imported.search(text) for text in texts)


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[1:]) - find_rooms().keys():
        sys.exit(f"cannot list paths: expected rooms of this project: {', '.join(find_rooms()) or 'there are none'}")
    print("\n".join(list_paths(find_dependents(sys.argv[1:]))))

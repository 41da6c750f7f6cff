"""The rooms of this project: packages that a copy may leave out. Each describes itself in its module `room.py`.

The core finds rooms by this module and imports none of them by name. References are written `module:attribute`. They
are imported when they are used, so that finding the rooms imports nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """What a room adds to the project, besides the commands in its module `commands.py`."""

    section: tuple[str, str] | None = None  # its section of params.yaml, and a reference to that section's class
    status: str | None = None  # reference to a function of the workspace: further lines of `pipeline status`
    flows: Mapping[str, str] = field(default_factory=dict)  # deployment: reference to its Prefect flow
    files: tuple[str, ...] = ()  # its files outside its package and its tests, such as its pages in docs/


@cache
def find_rooms() -> dict[str, Room]:
    """Return the rooms of this project by name."""
    names = sorted(path.parent.name for path in Path(__file__).parent.glob("*/room.py"))
    return {name: import_module(f"pipeline.{name}.room").ROOM for name in names}

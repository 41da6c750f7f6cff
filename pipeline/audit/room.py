"""What this room adds to the project: `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(files=("docs/reproduction.md",))

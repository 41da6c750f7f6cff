"""Description of the room `notices` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(files=("docs/notices.md",))

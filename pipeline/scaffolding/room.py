"""Description of the room `scaffolding` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(files=("docs/new-project.md",))

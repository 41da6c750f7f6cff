"""Description of the room `serving` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(section=("serve", "pipeline.serving.params:ServeParams"), files=("docs/serving.md",))

"""Description of the room `audit` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    remedies={
        "find what is wrong": "pipeline verify",
        "find a commit": "git checkout COMMIT (pipeline lineage names it)",
    },
    files=("docs/reproduction.md",),
)

"""Description of the room `search` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    section=("sweep", "pipeline.search.params:SweepParams"),
    files=("docs/search.md", "benchmarks/search.py", "benchmarks/search.md"),
)

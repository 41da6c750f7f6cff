"""Description of the room `review` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    remedies={"find wrong labels": "pipeline review labels"},
    files=("docs/labels.md", "benchmarks/review.py", "benchmarks/review.md"),
)

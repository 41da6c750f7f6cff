"""Description of the room `review` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    section=("review", "pipeline.review.params:ReviewParams"),
    remedies={"find wrong labels": "pipeline review labels"},
    files=("docs/labels.md",),
)

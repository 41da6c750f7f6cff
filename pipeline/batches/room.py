"""What this room adds to the project: `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    status="pipeline.batches.status:describe_left_out",
    remedies={"add a batch": "pipeline add-data"},
)

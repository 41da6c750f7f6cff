"""Description of the room `batches` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    status="pipeline.batches.left_out:describe_left_out",
    remedies={"add a batch": "pipeline add-data"},
)

"""Description of the room `servers` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    flows={"train": "pipeline.servers.train_flow:train"},
    remedies={"show the store": "pipeline ui"},
    files=("docs/servers.md", "docs/schedules.md", "docs/team.md", "compose.yaml", ".env.example", "prefect.yaml"),
)

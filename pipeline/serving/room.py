"""Description of the room `serving` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room, RoomServer

ROOM = Room(
    section=("serve", "pipeline.serving.params:ServeParams"),
    status="pipeline.serving.status:describe_server",
    servers={"serve": RoomServer("pipeline.cli", ("serve",), 5002, "/health/live")},
    files=(
        "docs/serving.md",
        "docs/scoring.md",
        "benchmarks/serving.py",
        "benchmarks/serving.md",
        "benchmarks/http_load.py",
        "benchmarks/scoring.py",
        "benchmarks/scoring.md",
        "docker/serving.Dockerfile",
        "docker/serving.Dockerfile.dockerignore",
        "docker/requirements-serving.in",
        "requirements-serving.lock",
    ),
)

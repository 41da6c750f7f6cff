"""Description of the room `scale` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    section=("scale", "pipeline.scale.params:ScaleParams"),
    executor="pipeline.scale.executor:find_executor",
    files=("docs/scale.md", "compose.dask.yaml", "benchmarks/scale.py", "benchmarks/scale.md"),
)

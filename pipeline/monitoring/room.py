"""Description of the room `monitoring` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    section=("monitor", "pipeline.monitoring.params:MonitorParams"),
    flows={"monitor-data": "pipeline.monitoring.flow:monitor_data"},
    files=("docs/monitoring.md", "benchmarks/traffic.py", "benchmarks/traffic.md"),
)

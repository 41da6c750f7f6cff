"""Description of the room `change_report` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(files=("docs/change-report.md", ".github/workflows/report.yml", ".ci/report"))

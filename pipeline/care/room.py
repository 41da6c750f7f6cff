"""Description of the room `care` for the core: see `pipeline.rooms`."""

from pipeline.rooms import Room

ROOM = Room(
    remedies={
        "migrate the store": "pipeline upgrade",
        "restore the store": "pipeline restore BACKUP --replace (keeps a copy of the damaged file). Without a backup",
        "complete a restore": "run the same `pipeline restore` again, with --replace: it completes the restore",
        "free space": "pipeline gc",
    },
    files=("docs/care.md",),
)

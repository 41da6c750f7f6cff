"""Events for other programs: one line of JSON each, appended to `.pipeline/events.jsonl` of the main repository."""

import fcntl
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import WorkspaceError
from pipeline.files import PRIVATE
from pipeline.json_lines import append_json
from pipeline.workspace import STATE, main_repository, make_state

EVENTS = STATE / "events.jsonl"
FORMER = EVENTS.with_suffix(".jsonl.1")  # the events before the last time that EVENTS became too large
LARGEST = 10**7  # bytes

Kind = Literal[
    "batch.arrived",
    "batch.quarantined",
    "drift.batch",
    "drift.traffic",
    "feedback.received",
    "model.promoted",
    "model.rejected",
    "run.failed",
]


def record_event(
    kind: Kind, evidence: Any, *, dataset: str | None = None, version: str | None = None, root: Path | None = None
) -> None:
    """Append an event. Several processes may do so at the same time. Never raises: an event must not fail the run.

    Args:
        evidence: a path or numbers, JSON-serializable.
        dataset: name of the dataset, where there is one.
        version: of the registered model, where there is one.
        root: the main repository; None: that of the current directory. Without one, nothing is recorded.
    """
    content = {"kind": kind, "at": datetime.now(UTC).isoformat(timespec="seconds"), "evidence": evidence}
    content |= {name: value for name, value in (("dataset", dataset), ("version", version)) if value is not None}
    try:
        root = root or main_repository()
        make_state(root)
        _replace_former(root / EVENTS, root / FORMER)
        append_json(root / EVENTS, [content], mode=PRIVATE)
    except WorkspaceError:
        return
    except OSError as error:
        print(f"the event {kind} was not recorded: {error}", file=sys.stderr, flush=True)


def _replace_former(path: Path, former: Path) -> None:
    """Rename the file of events to the one before it, if it is too large. Of several processes, one renames it."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        opened = os.fstat(file.fileno())
        if opened.st_size > LARGEST and os.path.samestat(opened, path.stat()):
            path.replace(former)

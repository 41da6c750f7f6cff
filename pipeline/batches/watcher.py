"""Watch `data/incoming/` for batches that arrived completely."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from pipeline.batches.incoming import Files, list_batches

QUIET_SECONDS = 5.0  # without a change, after which a batch counts as complete
SCAN_SECONDS = 30.0  # between two scans without file events: a network drive sends none

_LOGGER = logging.getLogger(__name__)


async def arrived_batches(incoming: Path) -> AsyncIterator[tuple[str, ...]]:
    """Yield the names of complete batches: first of all that exist, then of new and changed ones.

    A batch is complete if nothing changed for `QUIET_SECONDS` and two scans found the same files. Pointers are ignored:
    the scheduled retraining takes in batches from a commit. Batches that cannot be read are left out.
    """
    from watchfiles import awatch

    incoming.mkdir(parents=True, exist_ok=True)
    yielded: dict[str, Files] = {}
    before: dict[str, Files] | None = None  # the result of the last scan, if it was not yielded
    logged: Mapping[str, str] = {}  # unreadable batches
    next_scan = time.monotonic()
    quiet = round(QUIET_SECONDS * 1000)
    async for changes in awatch(incoming, rust_timeout=quiet, yield_on_timeout=True):
        if changes:
            before, next_scan = None, time.monotonic()
        if changes or time.monotonic() < next_scan:
            continue
        found, unreadable = list_batches(incoming)
        for name in sorted(unreadable.keys() - logged.keys()):
            _LOGGER.warning("batch %s is left out: %s", name, unreadable[name])
        logged = unreadable
        if found == yielded:
            before, next_scan = None, time.monotonic() + SCAN_SECONDS
        elif found == before:
            new = tuple(sorted(name for name, files in found.items() if yielded.get(name) != files))
            yielded = found
            if new:
                yield new
        else:
            before = found

"""Watch `data/incoming/` for batches that arrived completely."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from pipeline.data.batches import POINTER, read_files
from pipeline.errors import DataError

QUIET_SECONDS = 5.0  # without a change, after which a batch counts as complete
LOOK_SECONDS = 30.0  # between two scans without file events: a network drive sends none

Files = Mapping[str, tuple[int, int]]  # of a batch, by path: bytes, and time of the last change in ns

_LOGGER = logging.getLogger(__name__)


async def arrived_batches(incoming: Path) -> AsyncIterator[tuple[str, ...]]:
    """Yield the names of complete batches: first of all that exist, then of new and changed ones.

    A batch is complete if nothing changed for `QUIET_SECONDS` and two scans found the same files. Pointers are ignored:
    the scheduled retraining takes in batches from a commit. Batches that cannot be read are left out.
    """
    from watchfiles import awatch

    incoming.mkdir(parents=True, exist_ok=True)
    taken: dict[str, Files] = {}
    before: dict[str, Files] | None = None  # the result of the last scan, if it was not yielded
    known_as_odd: Mapping[str, str] = {}
    next_look = time.monotonic()
    quiet = round(QUIET_SECONDS * 1000)
    async for changes in awatch(incoming, rust_timeout=quiet, yield_on_timeout=True):
        if changes:
            before, next_look = None, time.monotonic()
        if changes or time.monotonic() < next_look:
            continue
        found, odd = read_batches(incoming)
        for name in sorted(odd.keys() - known_as_odd.keys()):
            _LOGGER.warning("batch %s is left out: %s", name, odd[name])
        known_as_odd = odd
        if found == taken:
            before, next_look = None, time.monotonic() + LOOK_SECONDS
        elif found == before:
            new = tuple(sorted(name for name, files in found.items() if taken.get(name) != files))
            taken = found
            if new:
                yield new
        else:
            before = found


def read_batches(incoming: Path) -> tuple[dict[str, Files], dict[str, str]]:
    """List the batches of a directory with their files, and the reason for each that cannot be read, by name.

    Hidden entries and folders without files are not batches. A batch that contains a link is not read.
    """
    found, odd = {}, {}
    for path in incoming.iterdir() if incoming.is_dir() else ():
        if not path.name.startswith(".") and path.suffix != POINTER:
            try:
                found[path.name] = read_files(path)
            except DataError as error:
                odd[path.name] = error.problem.replace(f"{incoming}/", "")
            except OSError as error:
                odd[path.name] = error.strerror or str(error)
    return {name: files for name, files in found.items() if files}, odd

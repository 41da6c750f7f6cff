"""Noticing batches in `data/incoming/` once nothing of them is still arriving."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from pipeline.data.batches import POINTER, read_files
from pipeline.errors import DataError

QUIET_SECONDS = 5.0  # without a change, after which what has arrived counts as whole
LOOK_SECONDS = 30.0  # between two looks without any news: a network's disk sends none

Files = Mapping[str, tuple[int, int]]  # of a batch, by path: bytes, and time of the last change in ns

_LOGGER = logging.getLogger(__name__)


async def arrived_batches(incoming: Path) -> AsyncIterator[tuple[str, ...]]:
    """Yield the names of batches that are whole: at first of all that are there, then of new and of changed ones.

    A batch is whole when nothing has stirred for `QUIET_SECONDS`, and its files are as they were before that time.
    Pointers are not looked at: what a commit brings is for the schedule. One that cannot be looked at is left out.
    """
    from watchfiles import awatch

    incoming.mkdir(parents=True, exist_ok=True)
    taken: dict[str, Files] = {}
    before: dict[str, Files] | None = None  # what the last look found, if it has not been taken
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
    """The batches of a directory with their files; and, by name, why others cannot be looked at.

    What is hidden is no batch, nor is what holds no file. A batch that holds a link is not looked at.
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

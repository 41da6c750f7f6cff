"""The writer of the traffic log: see `pipeline.data.traffic` for its format.

`TrafficLog.add` only appends to a list in memory. A thread measures the images and writes the rows, at the latest
after `FLUSH_SECONDS`: a killed server loses the rows of this time. What the thread cannot keep up with is dropped and
counted. A log that cannot be written never fails a request.
"""

import fcntl
import logging
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.traffic import CLOSED, HOUR, OPEN, SCHEMA, read_open_file
from pipeline.files import atomic_file
from pipeline.serving.traffic_rows import Answers, ShadowAnswers, tabulate

FLUSH_SECONDS = 2.0  # the rows of this time may be lost
MOST_ROWS, MOST_BYTES = 256, 2**22  # that wait before the thread is woken up earlier, and of a batch in a file
LARGEST_BACKLOG = 8  # times these; beyond it, requests are dropped
FULL = 0.9  # share of the limit that remains after a deletion
ROW_GROUP = 8192  # rows of a Parquet file's row group, at most
WARN_SECONDS = 60  # between two warnings

_LOGGER = logging.getLogger(__name__)


class TrafficLog:
    """Log of the answers of one process. Several processes may log to one directory."""

    def __init__(self, directory: Path, *, share: float, keep_images: bool, keep_days: int, limit_mb: int) -> None:
        """Start the thread.

        Args:
            directory: `TRAFFIC` of the main repository; created if missing.
            share: share of the requests to log, 0 to 1. The request id decides.
            keep_images: log the images too.
            keep_days: delete files that are older.
            limit_mb: delete the oldest files beyond this size of the directory, in megabytes.
        """
        self.logged = 0  # images written
        self.dropped = 0  # images of sampled requests that were not written
        self._directory, self._share, self._keep_images = directory, share, keep_images
        self._keep, self._limit = timedelta(days=keep_days), limit_mb * 10**6
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pending: list[Answers] = []
        self._rows = self._bytes = 0  # pending
        self._is_closing = False
        self._file: _OpenFile | None = None
        self._room = 0  # bytes until the limit
        self._warned = -float(WARN_SECONDS)
        self._thread = threading.Thread(target=self._run, name="traffic log", daemon=True)
        self._thread.start()

    def add(
        self,
        request_id: str,
        version: str,
        sha256: str,
        images: np.ndarray,
        probabilities: np.ndarray,
        shadow: ShadowAnswers | None = None,
    ) -> None:
        """Log the answers to a request, if it is in the sample. Returns at once. The arrays must not change afterwards.

        Args:
            request_id: unique, such as a UUID.
            version: of the registered model that answered.
            sha256: of its `model.tflite`.
            images: uint8 [n, *shape].
            probabilities: float32 [n, classes].
            shadow: the answers of another model to the same images.
        """
        if zlib.crc32(request_id.encode()) >= self._share * 2**32 or not len(images):
            return
        answers = Answers(request_id, time.time(), version, sha256, images, probabilities, shadow)
        with self._lock:
            rows, size = self._rows + len(images), self._bytes + images.nbytes
            if self._is_closing or (
                self._pending and (rows > LARGEST_BACKLOG * MOST_ROWS or size > LARGEST_BACKLOG * MOST_BYTES)
            ):
                self.dropped += len(images)
                return
            self._pending.append(answers)
            self._rows, self._bytes = rows, size
        if rows >= MOST_ROWS or size >= MOST_BYTES:
            self._wake.set()

    def close(self) -> None:
        """Write what is pending, and finish the file of this hour."""
        with self._lock:
            self._is_closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self._flush()
        self._flush()
        with self._warned_about_errors():
            self._close_file()

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            self._rows = self._bytes = 0
        for chunk in _split(pending):
            rows = sum(len(answers.images) for answers in chunk)
            written = False
            with self._warned_about_errors():
                written = self._write(chunk)
            if written:
                self.logged += rows
            else:
                self.dropped += rows

    def _write(self, chunk: Sequence[Answers]) -> bool:
        """Append a batch to the file of the present hour. Returns False if the directory has reached its limit."""
        if self._file is None or self._file.hour != f"{datetime.now(UTC):{HOUR}}" or self._room <= 0:
            self._start_file()
        if self._room <= 0 or self._file is None:
            return False
        self._room -= self._file.append(tabulate(chunk, self._keep_images))
        return True

    def _start_file(self) -> None:
        self._close_file()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.glob(f"*{OPEN}"):
            _convert_abandoned(path)
        self._room = self._limit - self._delete_old_files()
        if self._room > 0:
            self._file = _OpenFile(self._directory)

    def _close_file(self) -> None:
        if self._file:
            file, self._file = self._file, None
            file.close()

    def _delete_old_files(self) -> int:
        """Delete files that are too old, and the oldest beyond the limit. Returns the size of the others, in bytes."""
        oldest = f"{datetime.now(UTC) - self._keep:{HOUR}}"
        files = sorted(path for path in self._directory.glob("*") if path.suffix in (OPEN, CLOSED))
        sizes = {}
        for path in files:
            with suppress(FileNotFoundError):  # another process deletes, too
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if path.name < oldest or (total > FULL * self._limit and path.suffix == CLOSED):
                path.unlink(missing_ok=True)
                total -= size
        return total

    @contextmanager
    def _warned_about_errors(self) -> Iterator[None]:
        """Log a warning about an error of the disk, or of anything else, because the thread must go on."""
        try:
            yield
        except Exception as error:
            if time.monotonic() - self._warned >= WARN_SECONDS:
                self._warned = time.monotonic()
                _LOGGER.warning("the traffic log cannot be written: %s: %s", type(error).__name__, error)


class _OpenFile:
    """The Arrow stream of an hour. Its lock, which the system releases at a kill, shows that its writer is alive."""

    def __init__(self, directory: Path) -> None:
        now = datetime.now(UTC)
        self.hour = f"{now:{HOUR}}"
        self._path, self._size = directory / f"{self.hour}-{now:%M%S%f}-{secrets.token_hex(4)}{OPEN}", 0
        partial = self._path.with_name(f".{self._path.name}.partial")  # until it is locked
        self._file = open(  # noqa: SIM115
            partial, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600)
        )
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._append(SCHEMA.serialize())
        partial.rename(self._path)

    def append(self, batch: pa.RecordBatch) -> int:
        """Append a batch, and return its size in bytes."""
        return self._append(batch.serialize())

    def _append(self, content: pa.Buffer) -> int:
        try:
            written = self._file.write(content)
            if written != content.size:
                raise OSError(f"only {written} of {content.size} bytes were written to {self._path}")
        except OSError:
            self._file.truncate(self._size)  # half a batch would hide all later ones
            self._file.seek(self._size)
            raise
        self._size += content.size
        return int(content.size)

    def close(self) -> None:
        try:
            _convert(self._path)
        finally:
            self._file.close()


def _convert_abandoned(path: Path) -> None:
    """Convert the file of a process that was killed. Does nothing if its writer is alive."""
    with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _convert(path)


def _convert(path: Path) -> None:
    """Convert a finished Arrow stream to Parquet. Its writer, or who takes its place, holds the lock."""
    import pyarrow.parquet as pq

    batches = read_open_file(path)
    if first := next(batches, None):
        with (
            atomic_file(path.with_suffix(CLOSED), mode=0o600) as partial,
            pq.ParquetWriter(partial, SCHEMA, compression="zstd", use_dictionary=_dictionaries()) as parquet,
        ):
            waiting = [first]
            for batch in batches:
                if sum(rows.num_rows for rows in waiting) + batch.num_rows > ROW_GROUP or (
                    sum(rows.nbytes for rows in waiting) > 2 * MOST_BYTES
                ):
                    parquet.write_table(pa.Table.from_batches(waiting))
                    waiting = []
                waiting.append(batch)
            parquet.write_table(pa.Table.from_batches(waiting))
    path.unlink(missing_ok=True)
    pa.default_memory_pool().release_unused()


def _dictionaries() -> list[str]:
    return ["request_id", "version", "sha256", "predicted", "shadow_version", "shadow_sha256"]


def _split(pending: Sequence[Answers]) -> Iterator[list[Answers]]:
    """Split requests into chunks for one batch each. A chunk has images of one shape, and may be one large request."""
    for _, group in groupby(pending, key=lambda answers: answers.images.shape[1:]):
        chunk: list[Answers] = []
        rows = size = 0
        for answers in group:
            if chunk and (rows + len(answers.images) > MOST_ROWS or size + answers.images.nbytes > MOST_BYTES):
                yield chunk
                chunk, rows, size = [], 0, 0
            chunk.append(answers)
            rows, size = rows + len(answers.images), size + answers.images.nbytes
        yield chunk

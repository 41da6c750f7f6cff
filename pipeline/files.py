"""Writing files so that neither a kill nor a power cut leaves half of one, and naming them by their content."""

import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ABANDONED_SECONDS = 3600  # without a change, after which nobody is writing a temporary file any more


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; it takes `path`'s name only if the block succeeds.

    Each writer has a sibling of its own, and what killed ones left is removed: of several at once the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for former in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(FileNotFoundError):  # another writer has just renamed it
            if time.time() - former.stat().st_mtime > ABANDONED_SECONDS:
                former.unlink()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or the new name may reach the disk before the content does
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; it replaces the directory `path` only if the block succeeds."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as the same bytes for the same values: sorted keys, two spaces, one newline, no NaN."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_kept(path: Path) -> Any:
    """Read what `write_json` wrote and can be had anew; None where nothing is, or what a power cut left of it."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content, read in pieces. DVC's own digests are `md5`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()

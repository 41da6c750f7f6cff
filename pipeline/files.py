"""Reading files, writing them so that neither a kill nor a power cut leaves half of one, and their digests."""

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; it takes `path`'s name only if the block succeeds.

    Each writer has a sibling of its own, locked while it lives: what killed writers left is removed by the next, and
    of several at once the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for former in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), former.open("rb") as file:  # locked by its writer, or renamed by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            former.unlink()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with partial.open("xb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield partial
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


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML 1.2 with the library that DVC reads and writes it with.

    DVC writes small numbers as `1e-05`, which YAML 1.1, and PyYAML, read as text.

    Raises:
        ValueError: it is not YAML; the message says where.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except (YAMLError, TypeError, RecursionError) as error:  # TypeError: a mapping's key that cannot be one
        raise ValueError(str(error).strip()) from None


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

"""SQLite databases: consistent copies of those in use, checks, and the files next to a database."""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.files import PRIVATE
from pipeline.tracking.store_errors import is_damage

SIDECARS = ("-journal", "-wal", "-shm")  # SQLite would apply them to any database of that name


def copy_database(file: Path, copy: Path) -> None:
    """Copy a database that other processes may use. The copy is consistent and readable only by its owner.

    Raises:
        WorkspaceError: the database is damaged.
        OSError: the copy cannot be written.
    """
    copy.touch(PRIVATE)
    try:
        with closing(_open(file, "ro")) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise _damaged(file, str(error)) from None
        if "full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy)) from None
        raise WorkspaceError(f"{file} cannot be copied to {copy}", found=str(error)) from None
    if found := find_damage(copy):
        raise _damaged(file, found)


def find_damage(database: Path) -> str:
    """Run SQLite's check on a database. Returns the problem found, or an empty string."""
    try:
        with closing(_open(database, "rw")) as connection:
            (found,) = connection.execute("PRAGMA quick_check").fetchone()
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    return str(found) if found != "ok" else "" if tables != (0,) else "it has no tables"


def count_rows(database: Path, tables: tuple[str, ...]) -> dict[str, int]:
    """Count the rows of those tables that exist."""
    with closing(_open(database, "ro")) as connection:
        existing = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        counts = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in tables
            if table in existing
        }
    return counts


def sidecars(path: Path) -> list[Path]:
    """List the files that SQLite may create next to a database."""
    return [path.with_name(path.name + ending) for ending in SIDECARS] if path.suffix == ".db" else []


def _open(database: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode={mode}", uri=True)


def _damaged(file: Path, found: str) -> WorkspaceError:
    return WorkspaceError(
        f"{file} is damaged",
        expected="an undamaged SQLite database",
        found=found,
        remedy="pipeline restore BACKUP --replace, if there is an earlier backup",
    )

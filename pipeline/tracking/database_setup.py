"""The database of the tracking store: create it with MLflow's tables, and check it before it is opened."""

import logging
import os
import sqlite3
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from pipeline.errors import TrackingError
from pipeline.files import make_private
from pipeline.rooms import find_remedy
from pipeline.tracking import relocation, schema_check
from pipeline.tracking.store_errors import damaged, is_damage, locked
from pipeline.workspace import STATE, lock

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pipeline.tracking.store import Store

RESTORING = STATE / "restoring.json"  # in the database's folder, during a restore: the pending renames
LOCK_WAIT_SECONDS = 60  # creating the database takes about 2 s, 5 s on a busy machine
LOCK_REMEDY = "wait for it, or end that process"
BUSY_SECONDS = 10
CREATION_LOCK = 0x6D6C666C6F77  # key of our PostgreSQL advisory lock


def prepare(store: "Store") -> None:
    """Create the database of a store, or check that the default store's can be read.

    Raises:
        TrackingError: the database cannot be read or created.
    """
    if store.uri.startswith("postgresql"):
        _create_tables(store)
    database = store.database
    if database is None:
        if configured := _find_file(store.uri):
            _create_if_absent(store, configured)
        return
    if (database.parent / RESTORING).exists():
        raise TrackingError(
            f"cannot use {database}: its restore was interrupted",
            remedy=find_remedy("complete a restore", "restore a backup again"),
        )
    _create_if_absent(store, database)
    make_private(*database.parent.glob(f"{database.name}*"))
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if relocation.find_former_root(connection, database.parent):
                _relocate(connection, database)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise locked(store) from None
        # Checked here because MLflow would retry ten times, for nearly two minutes.
        if is_damage(error):
            raise damaged(database, str(error)) from None
        raise TrackingError(
            f"the tracking store {database} cannot be read",
            found=str(error),
            remedy="check that this file and its folder are readable and writable, and that the disk is not full",
        ) from None
    schema_check.require_current_schema(database)


def _find_file(uri: str) -> Path | None:
    """Return the file of a configured SQLite address. None: it is another address, or has no file."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url  # slow to import, and most stages do not need it

    path = make_url(uri).database
    return Path(path).absolute() if path and not path.startswith((":memory:", "file:")) else None


def _create_if_absent(store: "Store", database: Path) -> None:
    """Create a missing database under a lock, which is in the database's folder because other clones may open it."""
    if not _is_absent(database):
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    held: AbstractContextManager[Any]
    if store.database:
        held = lock("tracking store", wait=LOCK_WAIT_SECONDS, remedy=LOCK_REMEDY, root=database.parent)
    else:  # other users may share this file, and only its owner can read STATE
        held = filelock.FileLock(database.with_name(f".{database.name}.lock"), timeout=LOCK_WAIT_SECONDS, mode=0o666)
    with held:
        if _is_absent(database):
            _create(store, database)


def _relocate(connection: sqlite3.Connection, database: Path) -> None:
    """Rewrite the file addresses in a database for its present folder."""
    root = database.parent
    with lock("tracking store", wait=LOCK_WAIT_SECONDS, remedy=LOCK_REMEDY, root=root):
        former = relocation.find_former_root(connection, root)
        if former:
            count = relocation.rewrite(connection, former, root)
            print(f"{database} comes from {former}: changed {count} addresses in it to {root}", file=sys.stderr)


def _is_absent(database: Path) -> bool:
    return not database.exists() or database.stat().st_size == 0


def _create(store: "Store", database: Path) -> None:
    """Create a database with MLflow's tables.

    The migrations run on a temporary file, so that a killed process leaves no incomplete database. Their thousand
    commits are therefore written to the disk only once, at the end.
    """
    hidden = f".{database.name}.partial"
    partial = database.parent / STATE / hidden if store.database else database.with_name(hidden)
    partial.unlink(missing_ok=True)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    def disable_syncs(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    logging.getLogger("alembic").setLevel(logging.WARNING)
    event.listen(Engine, "connect", disable_syncs)
    try:
        SqlAlchemyStore(f"sqlite:///{partial}", store.artifacts).engine.dispose()
    finally:
        event.remove(Engine, "connect", disable_syncs)
    if store.database:
        with closing(sqlite3.connect(partial)) as connection, connection:
            relocation.record_root(connection, database.parent)
        make_private(partial)
    with partial.open("rb+") as file:
        os.fsync(file)
    os.replace(partial, database)


def _create_tables(store: "Store") -> None:
    """Create MLflow's tables in an empty PostgreSQL database, under a lock.

    MLflow takes no lock: if two processes create the tables at the same time, one fails.
    """
    from sqlalchemy import create_engine, inspect

    engine = create_engine(store.uri, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            if inspect(connection).has_table("alembic_version"):
                return
            hold_creation_lock(connection)
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            logging.getLogger("alembic").setLevel(logging.WARNING)
            SqlAlchemyStore(store.uri, store.artifacts).engine.dispose()
    finally:
        engine.dispose()  # closing the connection releases the lock


def hold_creation_lock(connection: "Connection") -> None:
    """Lock the creation of tables in a PostgreSQL database until the connection closes.

    Raises:
        sqlalchemy.exc.OperationalError: another process held the lock for LOCK_WAIT_SECONDS.
    """
    from sqlalchemy import text

    connection.execute(text(f"SET lock_timeout = '{LOCK_WAIT_SECONDS}s'"))
    connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": CREATION_LOCK})

"""Upgrade of the embedded databases to the schemas of the installed MLflow and Prefect.

The migrations of both tools are not atomic on SQLite. Therefore they run on a copy, which is compared with the original
and then replaces it by one rename. The original is kept. A kill before the rename changes nothing.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline.care import prefect_database
from pipeline.care.backup import copy_database, require_embedded, sidecars, state_beside
from pipeline.care.exclusive_access import alone
from pipeline.errors import WorkspaceError
from pipeline.tracking import migrations
from pipeline.workspace import main_repository

# An upgrade must keep the number of rows of these tables.
MLFLOW_RECORD = ("experiments", "runs", "params", "metrics", "tags", "model_versions", "registered_model_aliases")
PREFECT_RECORD = ("flow", "flow_run", "task_run", "log", "artifact", "deployment")


@dataclass(frozen=True)
class Upgraded:
    """Result for one database."""

    tool: str  # with version: `MLflow 3.17.2`
    database: Path
    former: str  # schema revision before
    now: str  # schema revision after; the same if no upgrade was needed
    kept: Path | None  # copy of the old database; None if there was no upgrade


def upgrade(workspace: Path) -> list[Upgraded]:
    """Upgrade the databases of a workspace's main repository made by an older MLflow or Prefect.

    Raises:
        WorkspaceError: a newer version made a database, another command is running, or the store is not embedded.
        TrackingError, FlowError: a migration failed. The database has not changed.
    """
    root = main_repository(workspace)
    tools = [
        _Tool("mlflow", "MLflow", require_embedded(workspace), MLFLOW_RECORD, migrations.find_age, migrations.migrate),
        _Tool(
            "prefect",
            "Prefect",
            prefect_database.find_file(root),
            PREFECT_RECORD,
            prefect_database.find_age,
            prefect_database.migrate,
        ),
    ]
    with alone(workspace, beside_servers=False):
        found = [
            (tool, tool.database, migrations.read_revision(tool.database))
            for tool in tools
            if tool.database and tool.database.exists()
        ]
        for tool, database, revision in found:
            if tool.find_age(revision) == "newer":
                raise WorkspaceError(
                    f"{database} was made by a newer {tool.name} than the installed {version(tool.package)}",
                    expected=f"a schema that {tool.name} {version(tool.package)} knows",
                    found=revision or "none",
                    remedy=f"install that {tool.name} (requirements.lock has it where the database comes from): "
                    "schemas are not taken back",
                )
        return [_upgrade(tool, database, revision) for tool, database, revision in found]


@dataclass(frozen=True)
class _Tool:
    package: str
    name: str
    database: Path | None
    record: tuple[str, ...]
    find_age: Callable[[str], migrations.Age]
    migrate: Callable[[Path], None]


def _upgrade(tool: _Tool, database: Path, revision: str) -> Upgraded:
    label = f"{tool.name} {version(tool.package)}"
    if tool.find_age(revision) == "current":
        return Upgraded(label, database, revision, revision, None)
    place = state_beside(database)
    place.mkdir(mode=0o700, exist_ok=True)
    copy = place / f"{database.name}.partial"
    copy.unlink(missing_ok=True)
    try:
        copy_database(database, copy)
        tool.migrate(copy)
        before, after = _count(database, tool.record), _count(copy, tool.record)
        if before != after:
            raise WorkspaceError(
                f"the upgrade of {database} would lose something, and was not made",
                expected=str(before),
                found=str(after),
            )
        with closing(sqlite3.connect(copy)) as connection:  # moves the content of the WAL file into the database
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with copy.open("rb+") as file:
            os.fsync(file)
        kept = place / f"{database.stem}-{revision}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.db"
        copy_database(database, kept)
        os.replace(copy, database)
        for sidecar in sidecars(database):  # of the old database: empty, no process had it open
            sidecar.unlink(missing_ok=True)
    finally:
        copy.unlink(missing_ok=True)
    return Upgraded(label, database, revision, migrations.read_revision(database), kept)


def _count(database: Path, tables: tuple[str, ...]) -> dict[str, int]:
    """Count the rows of the existing tables."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return {
            table: int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
            for table in tables
            if table in there
        }

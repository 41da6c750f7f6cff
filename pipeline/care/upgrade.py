"""Upgrade of the embedded databases to the schemas of the installed MLflow and Prefect.

The migrations of both tools are not atomic on SQLite. Therefore they run on a copy, which is compared with the original
and then replaces it by one rename. The original is kept. A kill before the rename changes nothing.
"""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline.care import prefect_database
from pipeline.care.backup import require_embedded, state_beside
from pipeline.care.exclusive_access import exclusive_access
from pipeline.care.sqlite import copy_database, count_rows, sidecars
from pipeline.errors import WorkspaceError
from pipeline.tracking.mlflow_internals import read_schema_revisions
from pipeline.tracking.schema_check import compare, read_revision
from pipeline.workspace import main_repository


@dataclass(frozen=True)
class Upgraded:
    """Result for one database."""

    tool: str  # with version: `MLflow 3.17.2`
    database: Path
    former: str  # schema revision before
    now: str  # schema revision after; the same if no upgrade was needed
    kept: Path | None  # copy of the old database; None if there was no upgrade


@dataclass(frozen=True)
class _Tool:
    name: str
    database: Path | None
    tables: tuple[str, ...]  # an upgrade must keep the number of their rows
    revisions: Sequence[str]  # of the installed schema, the newest first
    command: Callable[[Path], tuple[str, ...]]  # upgrades a database; Prefect reads its address from the environment

    @property
    def version(self) -> str:
        return version(self.name.lower())


def upgrade(workspace: Path) -> list[Upgraded]:
    """Upgrade the databases of a workspace's main repository made by an older MLflow or Prefect.

    Raises:
        WorkspaceError: a newer version made a database, another command is running, the store is not embedded, or a
            migration failed. The database has not changed.
    """
    mlflow = _Tool(
        "MLflow",
        require_embedded(workspace),
        ("experiments", "runs", "params", "metrics", "tags", "model_versions", "registered_model_aliases"),
        read_schema_revisions(),
        lambda copy: ("mlflow", "db", "upgrade", f"sqlite:///{copy}"),
    )
    prefect = _Tool(
        "Prefect",
        prefect_database.find_file(main_repository(workspace)),
        ("flow", "flow_run", "task_run", "log", "artifact", "deployment"),
        prefect_database.read_schema_revisions(),
        lambda _: ("prefect", "server", "database", "upgrade", "-y"),
    )
    with exclusive_access(workspace, with_servers=True):
        existing = [(tool, tool.database) for tool in (mlflow, prefect) if tool.database and tool.database.exists()]
        for tool, database in existing:
            if compare(found := read_revision(database), tool.revisions) == "newer":
                raise WorkspaceError(
                    f"{database} was made by a newer {tool.name} than the installed {tool.version}",
                    expected=f"a schema that {tool.name} {tool.version} knows",
                    found=found or "none",
                    remedy=f"install that {tool.name} (see requirements.lock of the project that used it): "
                    "schemas cannot be downgraded",
                )
        return [_upgrade(tool, database) for tool, database in existing]


def _upgrade(tool: _Tool, database: Path) -> Upgraded:
    label, revision = f"{tool.name} {tool.version}", read_revision(database)
    if compare(revision, tool.revisions) == "current":
        return Upgraded(label, database, revision, revision, None)
    place = state_beside(database)
    place.mkdir(mode=0o700, exist_ok=True)
    copy = place / f"{database.name}.partial"
    copy.unlink(missing_ok=True)
    try:
        copy_database(database, copy)
        _migrate(tool, copy)
        before, after = count_rows(database, tool.tables), count_rows(copy, tool.tables)
        if before != after:
            raise WorkspaceError(
                f"cannot upgrade {database}: records would be lost", expected=str(before), found=str(after)
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
    return Upgraded(label, database, revision, read_revision(database), kept)


def _migrate(tool: _Tool, copy: Path) -> None:
    """Run the tool's own command on a copy of its database."""
    command = [sys.executable, "-m", *tool.command(copy)]
    environment = os.environ | {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{copy}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or read_revision(copy) != tool.revisions[0]:
        raise WorkspaceError(
            f"{tool.name} could not upgrade the copy of its database",
            found="\n".join((done.stderr or done.stdout).strip().splitlines()[-3:]),
            remedy=f"the database itself has not changed; look in {tool.name}'s issues for this migration",
        )

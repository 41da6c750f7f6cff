"""Prefect's database without its server: count and delete old history, compare and upgrade the schema."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import FlowError
from pipeline.flows.prefect_server import settings
from pipeline.tracking.migrations import Age, compare


@dataclass(frozen=True)
class Unwanted:
    """Amount of Prefect's history older than `days`. True as a condition if there is any."""

    days: int
    flow_runs: int = 0  # ended top-level runs; the runs below them are deleted too
    logs: int = 0
    artifacts: int = 0
    events: int = 0

    def __bool__(self) -> bool:
        return bool(self.flow_runs or self.logs or self.artifacts or self.events)


def find_file(root: Path) -> Path | None:
    """Find the file of the Prefect database. Returns None if a server or another database system holds it."""
    current = _settings(root)
    if current.api.url:
        return None
    address = str(current.server.database.connection_url.get_secret_value())
    _, is_file, path = address.partition("sqlite+aiosqlite:///")
    return Path(path) if is_file and path and ":memory:" not in path else None


async def count_old(root: Path, days: int) -> Unwanted:
    """Count the history older than `days`. All counts are 0 if there is no database yet or a server holds it."""
    file = find_file(root)
    if _settings(root).api.url or (file is not None and not file.exists()):
        return Unwanted(days)
    import sqlalchemy as sa
    from prefect.server.database import provide_database_interface
    from prefect.server.schemas.states import TERMINAL_STATES
    from prefect.types._datetime import now

    db, before = provide_database_interface(), now("UTC") - timedelta(days=days)
    old = sa.select(db.FlowRun.id).where(
        db.FlowRun.parent_task_run_id.is_(None),
        db.FlowRun.state_type.in_(TERMINAL_STATES),
        db.FlowRun.end_time < before,
    )
    with _explained():
        async with db.session_context() as session:

            async def count(model: Any, condition: Any) -> int:
                return int(await session.scalar(sa.select(sa.func.count()).select_from(model).where(condition)) or 0)

            return Unwanted(
                days,
                await count(db.FlowRun, db.FlowRun.id.in_(old)),
                await count(db.Log, db.Log.flow_run_id.in_(old)),
                await count(db.Artifact, db.Artifact.flow_run_id.in_(old)),
                await count(db.Event, db.Event.occurred < before),
            )


async def delete_old(unwanted: Unwanted) -> None:
    """Delete old history with the vacuum of Prefect's server, in small transactions."""
    from prefect.server.database import provide_database_interface
    from prefect.server.services import db_vacuum
    from prefect.settings import (
        PREFECT_SERVER_EVENTS_RETENTION_PERIOD,
        PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD,
        temporary_settings,
    )

    period, db = timedelta(days=unwanted.days), provide_database_interface()
    retention = {
        PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD: period,
        PREFECT_SERVER_EVENTS_RETENTION_PERIOD: period,
    }
    with _explained(), temporary_settings(updates=retention):
        await db_vacuum.vacuum_old_flow_runs(db=db)
        await db_vacuum.vacuum_orphaned_logs(db=db)  # left by an interrupted vacuum
        await db_vacuum.vacuum_orphaned_artifacts(db=db)
        await db_vacuum.vacuum_stale_artifact_collections(db=db)
        await db_vacuum.vacuum_old_events(db=db)


def find_age(revision: str) -> Age:
    """Compare the schema revision of Prefect's SQLite database with the installed Prefect."""
    from alembic.script import ScriptDirectory
    from prefect.server.database.alembic_commands import alembic_config
    from prefect.server.database.orm_models import AioSqliteORMConfiguration

    config = alembic_config()
    config.set_main_option("version_locations", str(AioSqliteORMConfiguration().versions_dir))
    scripts = ScriptDirectory.from_config(config)
    return compare(revision, [script.revision for script in scripts.walk_revisions()])


def migrate(database: Path) -> None:
    """Migrate a database to the installed Prefect's schema, in place. Call this on a copy.

    Raises:
        FlowError: a migration failed.
    """
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    address = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}"}
    done = subprocess.run(command, env=os.environ | address, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowError(
            "Prefect could not upgrade the copy of its database",
            found="\n".join((done.stderr or done.stdout).strip().splitlines()[-3:]),
            remedy="the database itself is as it was; look in Prefect's issues for this migration",
        )


@contextmanager
def _explained() -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        raise FlowError(
            "Prefect's database cannot be used",
            found=str(error).partition("\n")[0],
            remedy="pipeline upgrade, if another version of Prefect made it",
        ) from None


def _settings(root: Path) -> Any:
    for name, value in settings(root).items():
        os.environ.setdefault(name, value)
    from prefect.settings import get_current_settings

    return get_current_settings()

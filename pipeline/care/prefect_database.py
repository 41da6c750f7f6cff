"""Prefect's database without its server: count and delete old history, list the schema revisions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import FlowError
from pipeline.flows.prefect_internals import database_interface
from pipeline.flows.prefect_server import settings


@dataclass(frozen=True)
class OldHistory:
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


async def count_old(root: Path, days: int) -> OldHistory:
    """Count the history older than `days`. All counts are 0 if there is no database yet or a server holds it."""
    file = find_file(root)
    if _settings(root).api.url or (file is not None and not file.exists()):
        return OldHistory(days)
    import sqlalchemy as sa
    from prefect.server.schemas.states import TERMINAL_STATES

    db, before = database_interface(), datetime.now(UTC) - timedelta(days=days)
    old = sa.select(db.FlowRun.id).where(
        db.FlowRun.parent_task_run_id.is_(None),
        db.FlowRun.state_type.in_(TERMINAL_STATES),
        db.FlowRun.end_time < before,
    )
    with _explained():
        async with db.session_context() as session:

            async def count(model: Any, condition: Any) -> int:
                return int(await session.scalar(sa.select(sa.func.count()).select_from(model).where(condition)) or 0)

            return OldHistory(
                days,
                await count(db.FlowRun, db.FlowRun.id.in_(old)),
                await count(db.Log, db.Log.flow_run_id.in_(old)),
                await count(db.Artifact, db.Artifact.flow_run_id.in_(old)),
                await count(db.Event, db.Event.occurred < before),
            )


async def delete_old(history: OldHistory) -> None:
    """Delete old history with the vacuum of Prefect's server, in small transactions."""
    from prefect.server.services import db_vacuum
    from prefect.settings import (
        PREFECT_SERVER_EVENTS_RETENTION_PERIOD,
        PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD,
        temporary_settings,
    )

    period, db = timedelta(days=history.days), database_interface()
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


def read_schema_revisions() -> list[str]:
    """Return the revisions of the installed Prefect's schema for SQLite, the newest first."""
    from alembic.script import ScriptDirectory
    from prefect.server.database.alembic_commands import alembic_config
    from prefect.server.database.orm_models import AioSqliteORMConfiguration

    config = alembic_config()
    config.set_main_option("version_locations", str(AioSqliteORMConfiguration().versions_dir))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]


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

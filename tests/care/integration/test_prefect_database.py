"""Prefect's database: upgraded on a copy, its old history counted and deleted."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.care.prefect_database import OldHistory, count_old, delete_old
from pipeline.care.upgrade import upgrade
from pipeline.errors import WorkspaceError
from tests.integration.recorded import Workspace, empty_store, prefect_database, workspace

__all__ = ["empty_store", "prefect_database", "workspace"]  # fixtures
pytestmark = pytest.mark.faults

STEPS = 2  # migrations that the older Prefect did not have


def make_old(database: Path) -> str:
    """Create a database with the schema of an older Prefect. Returns its revision."""
    from alembic.script import ScriptDirectory
    from prefect.server.database.alembic_commands import alembic_config
    from prefect.server.database.orm_models import AioSqliteORMConfiguration

    config = alembic_config()
    config.set_main_option("version_locations", str(AioSqliteORMConfiguration().versions_dir))
    revision = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][STEPS]
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y", "--revision", revision]
    address = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}"}
    subprocess.run(command, env=os.environ | address, check=True, capture_output=True)
    return revision


async def add_flow_runs(*days: int) -> list[UUID]:
    """Add flow runs that ended so many days ago, each with a log line."""
    from prefect.server.database import provide_database_interface
    from prefect.server.schemas.states import StateType
    from prefect.types._datetime import now

    db, made = provide_database_interface(), []
    async with db.session_context(begin_transaction=True) as session:
        flow = db.Flow(name="train")
        session.add(flow)
        await session.flush()
        for age in days:
            when = now("UTC") - timedelta(days=age)
            run = db.FlowRun(flow_id=flow.id, name=f"{age} days", state_type=StateType.COMPLETED, end_time=when)
            session.add(run)
            await session.flush()
            session.add(db.Log(flow_run_id=run.id, name="log", level=20, message="a line", timestamp=when))
            made.append(run.id)
    return made


async def find_flow_runs() -> set[UUID]:
    import sqlalchemy as sa
    from prefect.server.database import provide_database_interface

    db = provide_database_interface()
    async with db.session_context() as session:
        return set((await session.execute(sa.select(db.FlowRun.id))).scalars())


def test_an_old_database_is_upgraded_and_its_old_history_deleted(workspace: Workspace, prefect_database: Path) -> None:
    revision = make_old(prefect_database)
    with closing(sqlite3.connect(prefect_database)) as connection, connection:
        connection.execute("INSERT INTO flow (id, name) VALUES ('01234567-89ab-cdef-0123-456789abcdef', 'older')")

    mlflow, done = upgrade(workspace.root)
    assert mlflow.kept is None
    assert (done.database, done.former) == (prefect_database, revision)
    assert done.now != revision
    with closing(sqlite3.connect(prefect_database)) as connection:
        assert connection.execute("SELECT name FROM flow").fetchall() == [("older",)]
    assert [again.kept for again in upgrade(workspace.root)] == [None, None]

    _, recent = asyncio.run(add_flow_runs(40, 3))
    found = asyncio.run(count_old(workspace.root, days=30))
    assert found == OldHistory(30, flow_runs=1, logs=1)
    asyncio.run(delete_old(found))
    assert asyncio.run(find_flow_runs()) == {recent}
    assert not asyncio.run(count_old(workspace.root, days=30))

    with closing(sqlite3.connect(prefect_database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    with pytest.raises(WorkspaceError, match="newer Prefect"):
        upgrade(workspace.root)

"""Databases of other versions of MLflow and Prefect: upgraded on a copy, or refused."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.care.upgrade import upgrade
from pipeline.errors import TrackingError, WorkspaceError
from pipeline.tracking.store import locate, open_store
from tests.integration.recorded import Workspace, empty_store, prefect_database, workspace

__all__ = ["empty_store", "prefect_database", "workspace"]  # fixtures

REVISION = "a8b9c0d1e2f3"  # of MLflow's schema: nine migrations before 3.17's, when it had fewer tables


@pytest.fixture
def old(workspace: Workspace, prefect_database: Path) -> Workspace:
    """A workspace whose store an older MLflow made, with an experiment and a run in it."""
    make_old(workspace.root / "mlflow.db", REVISION)
    return workspace


def make_old(database: Path, revision: str) -> None:
    """Create a database with the schema of an older MLflow: its first tables, and the migrations up to a revision."""
    import mlflow.store.db.utils as utils
    import sqlalchemy
    from alembic import command

    logging.getLogger("alembic").setLevel(logging.WARNING)
    database.unlink()
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    utils.InitialBase.metadata.create_all(engine)
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("PRAGMA synchronous = OFF"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    place = f"file://{database.parent}/mlruns"
    with closing(sqlite3.connect(database)) as connection, connection:
        for number, name in enumerate(("Default", "garments")):
            connection.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) VALUES (?, ?, ?, ?)",
                (number, name, f"{place}/{number}", "active"),
            )
        connection.execute(
            "INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, lifecycle_stage, artifact_uri,"
            " source_type, source_name, entry_point_name, user_id, source_version)"
            " VALUES ('0123', 'mlp', 1, 'FINISHED', 1, 'active', ?, 'LOCAL', '', '', '', '')",
            (f"{place}/1/0123/artifacts",),
        )
        connection.execute("INSERT INTO tags (key, value, run_uuid) VALUES ('model.sha256', 'abcd', '0123')")


def test_an_old_database_is_upgraded_and_the_original_kept(old: Workspace) -> None:
    database = old.root / "mlflow.db"
    before = database.read_bytes()
    with pytest.raises(TrackingError, match="is older than the installed MLflow's") as caught:
        open_store(locate(old.root))
    assert caught.value.remedy == "pipeline upgrade"
    assert database.read_bytes() == before  # MLflow would have migrated it at once, without a copy

    (done,) = upgrade(old.root)
    assert (done.database, done.former) == (database, REVISION)
    assert done.kept
    with closing(sqlite3.connect(done.kept)) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchone() == (REVISION,)
        assert kept.execute("SELECT run_uuid FROM runs").fetchall() == [("0123",)]
    run = old.client.get_run("0123")
    assert (run.data.tags["model.sha256"], run.info.artifact_uri) == (
        "abcd",
        f"file://{old.root}/mlruns/1/0123/artifacts",
    )

    (again,) = upgrade(old.root)
    assert again.kept is None
    assert again.former == again.now == done.now


def test_a_killed_upgrade_leaves_the_database_and_the_next_one_works(old: Workspace) -> None:
    (old.root / ".pipeline").mkdir(exist_ok=True)
    (old.root / ".pipeline/mlflow.db.partial").write_bytes(b"half of a copy")
    (done,) = upgrade(old.root)
    assert done.kept
    assert old.client.get_run("0123").info.status == "FINISHED"


def test_a_newer_database_is_refused(workspace: Workspace, prefect_database: Path) -> None:
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    before = (workspace.root / "mlflow.db").read_bytes()
    with pytest.raises(WorkspaceError, match="made by a newer MLflow than the installed") as caught:
        upgrade(workspace.root)
    assert caught.value.found == "fedcba987654"
    assert (workspace.root / "mlflow.db").read_bytes() == before

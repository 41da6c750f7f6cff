"""Migrations of MLflow's database: compare its schema with the installed MLflow's."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from pipeline.errors import TrackingError
from pipeline.rooms import find_remedy
from pipeline.tracking.mlflow_internals import read_schema_revisions

Age = Literal["current", "older", "newer"]


def compare(revision: str, known: Sequence[str]) -> Age:
    """Compare the revision of a database with those of the installed package, the newest first.

    An unknown revision is newer.
    """
    if revision not in known:
        return "newer"
    return "current" if revision == known[0] else "older"


def read_revision(database: Path) -> str:
    """Read the revision of the schema from a database. Empty if it has none."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:  # no such table
            return ""
    return str(found[0]) if found else ""


def require_current_schema(database: Path) -> None:
    """Refuse a database with the schema of another MLflow. MLflow may migrate it when it opens it, without a copy.

    Raises:
        TrackingError: another version of MLflow made the database.
    """
    revision, known = read_revision(database), read_schema_revisions()
    if revision and (age := compare(revision, known)) != "current":
        raise TrackingError(
            f"the schema of the tracking store {database} is {age} than the installed MLflow's",
            expected=f"revision {known[0]}",
            found=f"revision {revision}",
            remedy=find_remedy("migrate the store", f"back it up, then: mlflow db upgrade sqlite:///{database}"),
        )

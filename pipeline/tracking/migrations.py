"""Migrations of MLflow's database: compare its schema with the installed MLflow's, and upgrade it."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import TrackingError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

Age = Literal["current", "older", "newer"]


def find_age(revision: str) -> Age:
    """Compare a database revision with the installed MLflow's. An unknown revision is from a newer MLflow."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return compare(revision, ScriptDirectory.from_config(_get_alembic_config("")))


def compare(revision: str, scripts: "ScriptDirectory") -> Age:
    """Compare a database revision with the migrations of a package. An unknown revision is newer."""
    known = [script.revision for script in scripts.walk_revisions()]
    if revision not in known:
        return "newer"
    return "current" if revision == known[0] else "older"


def require_tables(database: Path) -> None:
    """Refuse a database that lacks one of MLflow's tables. MLflow would migrate it when it opens it, without a copy.

    Raises:
        TrackingError: an older MLflow created the database.
    """
    import mlflow.store.db.utils  # noqa: F401  # registers the tables
    from mlflow.store.db.base_sql_model import Base

    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "experiments" in there and (missing := sorted(set(Base.metadata.tables) - there)):
        raise TrackingError(
            f"the tracking store {database} was made by an older version of MLflow",
            expected="the tables of the installed one",
            found=f"none called {', '.join(missing)}",
            remedy="pipeline upgrade",
        )


def migrate(database: Path) -> None:
    """Upgrade a database to the installed MLflow's schema, in place. Call it on a copy.

    Raises:
        TrackingError: a migration failed.
    """
    import mlflow.store.db.utils as utils
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{database}")
    try:
        utils._upgrade_db(engine)
        utils._verify_schema(engine)
    except SQLAlchemyError as error:
        raise TrackingError(
            "MLflow could not upgrade the copy of its database",
            found=str(error).partition("\n")[0],
            remedy="the database itself is as it was; look in MLflow's issues for this migration",
        ) from None
    finally:
        engine.dispose()

"""Private parts of MLflow, each with the reason why no public one is enough.

No other module uses a private name of MLflow. `test_mlflow_internals.py` fails if an upgrade removes one of these.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

REVISION = re.compile(r'^(revision|down_revision)\b.*=\s*"(\w+)"', re.MULTILINE)


def read_schema_revisions() -> list[str]:
    """Return the revisions of the installed MLflow's database schema, the newest first.

    MLflow has a public command that upgrades a database, and none that prints the revision. Reading the files of the
    migrations takes 20 ms. Importing them takes 2 s.
    """
    package = find_spec("mlflow")  # does not import it
    files = (Path(str(package and package.origin)).parent / "store/db_migrations/versions").glob("*.py")
    found = [match for file in files for match in REVISION.findall(file.read_text(encoding="utf-8"))]
    earlier = {revision for name, revision in found if name == "down_revision"}
    revisions = [revision for name, revision in found if name == "revision"]
    return sorted(revisions, key=earlier.__contains__)


def select_uvicorn() -> None:
    """Make MLflow's login return an application for uvicorn. The command `mlflow server` sets this variable."""
    from mlflow.environment_variables import _MLFLOW_SGI_NAME

    os.environ[_MLFLOW_SGI_NAME.name] = "uvicorn"


def get_server_store() -> "SqlAlchemyStore":
    """Return the store behind MLflow's server. No setting limits the locations that clients may choose for files."""
    from mlflow.server import handlers

    return handlers._get_tracking_store()


def find_deleted_models(store: "SqlAlchemyStore") -> "Iterator[LoggedModel]":
    """Yield the logged models that are marked as deleted. MLflow's search omits them."""
    for model in store._get_deleted_logged_models():
        yield store.get_logged_model(model, allow_deleted=True)


def delete_permanently(store: "SqlAlchemyStore", runs: Sequence[str], models: Sequence[str]) -> None:
    """Delete runs and logged models, given by id and marked as deleted, with their files. Skips missing ones.

    The command `mlflow gc` would also delete all experiments that are marked as deleted.
    """
    from mlflow.cli import _gc_tracking_resources

    with contextlib.redirect_stdout(io.StringIO()):
        _gc_tracking_resources(
            store,
            run_ids=list(runs),
            experiment_ids=None,
            logged_model_ids=list(models),
            older_than=None,
            time_delta=0,
            skip_experiments=True,
            skip_logged_models=False,
            ignore_not_found=True,
        )

"""The tracking store: the MLflow database and files that record runs and models.

The default store is `mlflow.db` and `mlruns/` in the root of the main repository. Their addresses are absolute, so all
worktrees and every `dvc exp run --temp` share them, and a plain `mlflow ui` there shows everything. While the
project's own server (`server_addresses.py`) serves the store, clients use it; the record is the same. If
`MLFLOW_TRACKING_URI` names another store (a server, or a team's database), only that one is used. For a database
without a server, `MLFLOW_DEFAULT_ARTIFACT_ROOT` is the location of the files.

`python -m pipeline.tracking.store` prepares the store, so that its creation can overlap with other work.
"""

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.errors import PipelineError, TrackingError
from pipeline.extras import require_packages
from pipeline.garbage_collection import collect_rarely
from pipeline.proxies import bypass_proxy
from pipeline.redaction import without_password
from pipeline.rooms import find_remedy
from pipeline.server_addresses import data_directory, find_server
from pipeline.tracking import database_setup
from pipeline.tracking.store_errors import LONGEST_CAUSE, explain, is_of_store, is_timeout
from pipeline.workspace import main_repository

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 5

# MLflow reads them at its import and at every request. Values that the user has set are kept.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # it would upload a `uv.lock` with every model
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the client of a server prints it at the end of every run
    # In total, about 60 s for a server that hangs, and nearly 30 s for one that restarts. MLflow's defaults (120 s and
    # 7 retries) take 20 minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "9",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "4",
}
# Set after a server did not respond: the code that closes the run must not wait for as long again.
SETTINGS_AFTER_TIMEOUT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@dataclass(frozen=True)
class Store:
    """The address of a tracking store."""

    uri: str
    artifacts: str | None  # parent URI of the files of new experiments; None: the server decides
    database: Path | None  # the default store's file; None: a server or a configured store

    @property
    def is_server(self) -> bool:
        """True if clients use HTTP."""
        return self.uri.startswith(("http://", "https://"))

    def __str__(self) -> str:
        return without_password(self.uri)


def locate(workspace: Path | None = None) -> Store:
    """Return the store of a workspace (default: the current directory's).

    Does not open it, but sends a health check to the project's own server, if there is one.
    """
    direct = locate_unserved(workspace)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return direct
    served = find_server(main_repository(workspace), "mlflow")
    return Store(served, None, None) if served else direct


def locate_unserved(workspace: Path | None = None) -> Store:
    """Return the store of a workspace without the project's own server, which itself opens this store."""
    data = data_directory(main_repository(workspace))
    artifacts = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or (data / "mlruns").as_uri()
    default = f"sqlite:///{data / 'mlflow.db'}"
    configured = os.environ.get("MLFLOW_TRACKING_URI") or default
    if configured == default:
        return Store(default, artifacts, data / "mlflow.db")
    is_server = configured.startswith(("http://", "https://", "databricks"))
    return Store(configured, None if is_server else artifacts, None)


def pages_command() -> str:
    """Return the command that shows MLflow's pages for the current directory.

    A plain `mlflow ui` opens `mlflow.db` in the current directory, under its percent-encoded path.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return "mlflow ui"
    store, here = locate_unserved(), Path.cwd()
    database = store.database
    is_found = database is None or (database.parent == here and quote(str(here)) == str(here))
    command = "mlflow ui" if is_found else f"mlflow ui --backend-store-uri {shlex.quote(store.uri)}"
    return find_remedy("show the store", command)


def open_store(store: Store) -> "MlflowClient":
    """Open a store and return its client. Creates the default store if it does not exist.

    Raises:
        TrackingError: the server does not respond, or the database is locked, damaged or of another MLflow version.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    prepare(store)
    with explained(store):
        from mlflow import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        # For a database error it logs a traceback and raises an exception. `explained` turns the latter into a message.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if store.is_server:
            _probe(store)
        return MlflowClient(store.uri)


def prepare(store: Store) -> None:
    """Create the database of a store, or check that the default store's can be read.

    Raises:
        TrackingError: the database cannot be read or created.
        WorkspaceError: the database or the files need packages that are not installed.
    """
    if store.uri.startswith(("postgresql:", "postgresql+psycopg2:")):
        require_packages(f"the tracking store {store}", "psycopg2")
    require_client_of(store.artifacts)
    with explained(store):
        database_setup.prepare(store)


@contextmanager
def as_default(store: Store) -> Iterator[None]:
    """Make a store MLflow's default during the block. MLflow's registry resolves models there, not in the client's."""
    import mlflow

    if os.environ.get("MLFLOW_TRACKING_URI"):  # it is the default already
        yield
        return
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)


@contextmanager
def explained(store: Store) -> Iterator[None]:
    """Turn an exception of MLflow or its database into a TrackingError with the store, the cause and a remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "boto3":  # a server's files, found to be in S3
            require_client_of("s3:")
        if not is_of_store(error):
            raise
        if store.is_server and is_timeout(error):
            os.environ |= SETTINGS_AFTER_TIMEOUT
        raise explain(store, error) from error


def require_client_of(artifacts: str | None) -> None:
    """Refuse an address of files in S3 without its client, which MLflow imports only when a model is uploaded."""
    if artifacts and artifacts.startswith("s3:"):
        require_packages("the S3 store of the runs' files", "boto3")


def answers(store: Store) -> bool:
    """Return False if a store is a server that does not respond. MLflow must be imported."""
    try:
        if store.is_server:
            _probe(store)
    except TrackingError:
        return False
    return True


def _probe(store: Store) -> None:
    """Send one health check to a server. MLflow would retry its first request for minutes if the server is down."""
    from mlflow.exceptions import InvalidUrlException, MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        http_request(
            get_default_host_creds(store.uri),
            "/health",
            "GET",
            max_retries=0,
            timeout=PROBE_SECONDS,
            raise_on_status=False,
        )
    except MlflowException as error:
        os.environ |= SETTINGS_AFTER_TIMEOUT
        raise TrackingError(
            f"the tracking server {store} does not respond",
            expected=f"a response within {PROBE_SECONDS} s",
            found=str(error).partition("\n")[0][:LONGEST_CAUSE],
            remedy="start it, or correct MLFLOW_TRACKING_URI (unset: mlflow.db in the project), then run again",
            temporary=not isinstance(error, InvalidUrlException) and "CERTIFICATE_VERIFY" not in str(error),
        ) from None


if __name__ == "__main__":
    collect_rarely()
    bypass_proxy()
    try:
        open_store(locate())
    except PipelineError as error:
        sys.exit(str(error))

"""The tracking store: the MLflow database and files that record runs and models.

The default store is `mlflow.db` and `mlruns/` in the root of the main repository. Their addresses are absolute, so all
worktrees and every `dvc exp run --temp` share them, and a plain `mlflow ui` there shows everything. While `pipeline up`
serves the store, clients use its server; the record is the same. If `MLFLOW_TRACKING_URI` names another store (a
server, or a team's database), only that one is used. For a database without a server, `MLFLOW_DEFAULT_ARTIFACT_ROOT` is
the location of the files.

`python -m pipeline.tracking.store` prepares the store, so that its creation can overlap with other work.
"""

import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import filelock

from pipeline.errors import PipelineError, TrackingError
from pipeline.files import make_private
from pipeline.proxies import bypass_proxy
from pipeline.redaction import without_password
from pipeline.stack import data_directory, find_server
from pipeline.tracking import migrations, relocation
from pipeline.workspace import STATE, lock, main_repository

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Connection

RESTORING = STATE / "restoring.json"  # in the database's folder, during a restore: the pending renames
LOCK_WAIT_SECONDS = 60  # creating the database takes about 2 s, 5 s on a busy machine
BUSY_SECONDS = 10
PROBE_SECONDS = 5
CREATION_LOCK = 0x6D6C666C6F77  # key of our PostgreSQL advisory lock
# Modules whose exceptions come from the store: MLflow, the database, and the clients of S3.
FOREIGN = ("mlflow.", "sqlalchemy.", "botocore.", "boto3.", "s3transfer.")

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
AFTER_SILENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


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

    Does not open it, but sends a health check to the server of `pipeline up`, if there is one.
    """
    direct = locate_unserved(workspace)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return direct
    served = find_server(main_repository(workspace), "mlflow")
    return Store(served, None, None) if served else direct


def locate_unserved(workspace: Path | None = None) -> Store:
    """Return the store of a workspace without the server of `pipeline up`. That server itself opens this store."""
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
    database, here = locate_unserved().database, Path.cwd()
    is_found = database is None or (database.parent == here and quote(str(here)) == str(here))
    return "mlflow ui" if is_found or os.environ.get("MLFLOW_TRACKING_URI") else "pipeline ui"


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


def experiment_id(client: "MlflowClient", store: Store, name: str) -> str:
    """Return the id of a dataset's experiment. Creates it if needed; safe if two processes do so at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, store.artifacts and f"{store.artifacts}/{name}"))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


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
        if not is_of_store(error):
            raise
        if store.is_server and _is_silence(str(error)):
            os.environ |= AFTER_SILENCE
        told = _explain_s3(error) if type(error).__module__.startswith(FOREIGN[2:]) else _explain(store, str(error))
        raise told from error


def _is_silence(message: str) -> bool:
    """Return True if the message of MLflow's client means that the server did not respond, after all retries."""
    return "API request to http" in message


def is_of_store(error: Exception) -> bool:
    """Return True if an exception comes from the store, its database or its files."""
    return type(error).__module__.startswith(FOREIGN)


def _explain_s3(error: Exception) -> TrackingError:
    return TrackingError(
        "the store of the runs' files did not do what it was asked",
        expected="an S3-compatible store that answers, with a bucket that these credentials may write to",
        found=without_password(str(error).strip().partition("\n")[0][:400]),
        remedy="see to it, or to MLFLOW_S3_ENDPOINT_URL and AWS_… (docs/team.md); then run the same command again",
        temporary="connect" in type(error).__name__.lower() or "timeout" in type(error).__name__.lower(),
    )


def _explain(store: Store, message: str) -> TrackingError:
    first = without_password(message.strip().partition("\n")[0][:400])
    if "database is locked" in message:
        return _locked(store)
    if "out-of-date database schema" in message or "Can't locate revision" in message:
        return TrackingError(
            f"the tracking store {store} was made by another version of MLflow",
            found=first,
            remedy="pipeline upgrade" if store.database else "back it up, then: mlflow db upgrade $MLFLOW_TRACKING_URI",
        )
    if "not authenticated" in message:
        return TrackingError(
            f"the tracking server {store} wants to know who you are",
            expected="in the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            found=first,
            remedy="set them, then run the same command again",
        )
    if store.is_server and _is_silence(message) and os.environ.get("MLFLOW_TRACKING_URI"):
        return TrackingError(
            f"the tracking server {store} stopped answering",
            expected="an answer within a minute",
            found=first,
            remedy="see that it is up and well; then run the same command again",
            temporary=True,
        )
    if store.is_server and not os.environ.get("MLFLOW_TRACKING_URI"):
        return TrackingError(
            f"the server of `pipeline up` at {store} refused a request",
            found=first,
            remedy="run the same command again: if the server is gone, it goes on without it, on the same records",
            temporary=_is_silence(message),
        )
    if store.database and ("malformed" in message or "file is not a database" in message):
        return _damaged(store.database, first)
    if "lock timeout" in message:
        return TrackingError(
            f"another process has been making the tables of {store} for {LOCK_WAIT_SECONDS} s",
            found=first,
            remedy="wait for it or end it, then run the same command again",
            temporary=True,
        )
    if "OperationalError" in message:
        remedy = "see that the database is up, writable and its disk not full; then run the same command again"
    elif store.artifacts is None:
        remedy = "see that MLFLOW_TRACKING_URI is right and its server well; then run the same command again"
    else:
        remedy = "run the same command again; if it stays, move the store away and let `pipeline sync` make a new one"
    return TrackingError(f"the tracking store {store} refused a request", found=first, remedy=remedy)


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return True if SQLite reports a damaged database. Other errors, such as a full disk, may be temporary."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _damaged(database: Path, found: str) -> TrackingError:
    return TrackingError(
        f"the tracking store {database} is damaged",
        expected="an SQLite database that MLflow made",
        found=found,
        remedy="pipeline restore BACKUP --replace: the damaged file is kept aside. Without a backup, the runs, the "
        "registered versions, the history of the aliases and the decisions are lost, except for the model that is "
        f"here: mv {database} {database}.damaged, then pipeline sync",
    )


def _locked(store: Store) -> TrackingError:
    return TrackingError(
        f"the tracking store {store} is locked",
        expected=f"access within {BUSY_SECONDS} s",
        found="another process keeps writing to it",
        remedy="end that process (an open database browser?), then run the same command again",
    )


def prepare(store: Store) -> None:
    """Create the default store's database atomically, or check that the existing one can be read.

    An empty PostgreSQL database of a team gets its tables.

    Raises:
        TrackingError: the database cannot be read or created.
    """
    if store.uri.startswith("postgresql"):
        with explained(store):
            _make_tables(store)
    database = store.database
    if database is None:
        if configured := _find_file(store.uri):
            _create_if_absent(store, configured)
        return
    if (database.parent / RESTORING).exists():
        raise TrackingError(
            f"a restore of {database} was cut off, and is half done",
            remedy="run the same `pipeline restore` again, with --replace: it is completed first",
        )
    _create_if_absent(store, database)
    make_private(*database.parent.glob(f"{database.name}*"))
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if relocation.find_former_root(connection, database.parent):
                _follow(connection, database)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise _locked(store) from None
        # Checked here because MLflow would retry ten times, for nearly two minutes.
        if is_damage(error):
            raise _damaged(database, str(error)) from None
        raise TrackingError(
            f"the tracking store {database} cannot be read",
            found=str(error),
            remedy="see that this file and its folder can be read and written, and that the disk is not full",
        ) from None
    migrations.require_current_schema(database)


def _find_file(uri: str) -> Path | None:
    """Return the file of a configured SQLite address. None: it is another address, or has no file."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url  # slow to import, and most stages do not need it

    path = make_url(uri).database
    return Path(path).absolute() if path and not path.startswith((":memory:", "file:")) else None


def _create_if_absent(store: Store, database: Path) -> None:
    """Create a missing database under a lock, which is in the database's folder because other clones may open it."""
    if not _is_absent(database):
        return
    remedy = "wait for it, or end that process"
    database.parent.mkdir(parents=True, exist_ok=True)
    held: AbstractContextManager[Any]
    if store.database:
        held = lock("tracking store", wait=LOCK_WAIT_SECONDS, remedy=remedy, root=database.parent)
    else:  # other users may share this file, and only its owner can read STATE
        held = filelock.FileLock(database.with_name(f".{database.name}.lock"), timeout=LOCK_WAIT_SECONDS, mode=0o666)
    with held:
        if _is_absent(database):
            _create(store, database)


def _follow(connection: sqlite3.Connection, database: Path) -> None:
    """Rewrite the file addresses in a database for its present folder."""
    root = database.parent
    with lock("tracking store", wait=LOCK_WAIT_SECONDS, remedy="wait for it, or end that process", root=root):
        former = relocation.find_former_root(connection, root)
        if former:
            count = relocation.rewrite(connection, former, root)
            print(f"{database} comes from {former}: {count} addresses in it now lead to {root}", file=sys.stderr)


def _is_absent(database: Path) -> bool:
    return not database.exists() or database.stat().st_size == 0


def _create(store: Store, database: Path) -> None:
    """Create a database with MLflow's tables.

    The migrations run on a temporary file, so that a killed process leaves no incomplete database. Their thousand
    commits are therefore written to the disk only once, at the end.
    """
    hidden = f".{database.name}.partial"
    partial = database.parent / STATE / hidden if store.database else database.with_name(hidden)
    partial.unlink(missing_ok=True)
    with explained(store):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        from sqlalchemy import Engine, event

        def skip_the_disk(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        logging.getLogger("alembic").setLevel(logging.WARNING)
        event.listen(Engine, "connect", skip_the_disk)
        try:
            SqlAlchemyStore(f"sqlite:///{partial}", store.artifacts).engine.dispose()
        finally:
            event.remove(Engine, "connect", skip_the_disk)
    if store.database:
        with closing(sqlite3.connect(partial)) as connection, connection:
            relocation.record_root(connection, database.parent)
        make_private(partial)
    with partial.open("rb+") as file:
        os.fsync(file)
    os.replace(partial, database)


def _make_tables(store: Store) -> None:
    """Create MLflow's tables in an empty PostgreSQL database, under a lock.

    MLflow takes no lock: if two processes create the tables at the same time, one fails.
    """
    from sqlalchemy import create_engine, inspect

    engine = create_engine(store.uri, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            if inspect(connection).has_table("alembic_version"):
                return
            hold_creation_lock(connection)
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            logging.getLogger("alembic").setLevel(logging.WARNING)
            SqlAlchemyStore(store.uri, store.artifacts).engine.dispose()
    finally:
        engine.dispose()  # closing the connection releases the lock


def hold_creation_lock(connection: "Connection") -> None:
    """Lock the creation of tables in a PostgreSQL database until the connection closes.

    Raises:
        sqlalchemy.exc.OperationalError: another process held the lock for LOCK_WAIT_SECONDS.
    """
    from sqlalchemy import text

    connection.execute(text(f"SET lock_timeout = '{LOCK_WAIT_SECONDS}s'"))
    connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": CREATION_LOCK})


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
        os.environ |= AFTER_SILENCE
        raise TrackingError(
            f"the tracking server {store} does not answer",
            expected=f"an answer within {PROBE_SECONDS} s",
            found=without_password(str(error).partition("\n")[0][:300]),
            remedy="start it, or correct MLFLOW_TRACKING_URI (unset: mlflow.db in the project), then run again",
            temporary=not isinstance(error, InvalidUrlException) and "CERTIFICATE_VERIFY" not in str(error),
        ) from None


if __name__ == "__main__":
    bypass_proxy()
    try:
        open_store(locate())
    except PipelineError as error:
        sys.exit(str(error))

"""Messages for errors of the tracking store: the problem, the cause and the remedy."""

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import TrackingError
from pipeline.rooms import find_remedy

if TYPE_CHECKING:
    from pipeline.tracking.store import Store

S3_CLIENT = ("botocore.", "boto3.", "s3transfer.")
FOREIGN = ("mlflow.", "sqlalchemy.", *S3_CLIENT)  # modules whose exceptions come from the store
LONGEST_CAUSE = 400  # characters


def is_of_store(error: Exception) -> bool:
    """Return True if an exception comes from the store, its database or its files."""
    return type(error).__module__.startswith(FOREIGN)


def is_timeout(error: Exception) -> bool:
    """Return True if MLflow's client got no response from the server, after all retries."""
    return "API request to http" in str(error)


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return True if SQLite reports a damaged database. Other errors, such as a full disk, may be temporary."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def explain(store: "Store", error: Exception) -> TrackingError:
    """Turn an exception of the store into a message."""
    text = str(error)
    cause = text.strip().partition("\n")[0][:LONGEST_CAUSE]
    if type(error).__module__.startswith(S3_CLIENT):
        return TrackingError(
            "cannot use the S3 store of the runs' files",
            expected="an S3-compatible store that responds, with a bucket that these credentials may write to",
            found=cause,
            remedy="check the store, MLFLOW_S3_ENDPOINT_URL and AWS_… (docs/team.md), then run the same command again",
            temporary=any(word in type(error).__name__.lower() for word in ("connect", "timeout")),
        )
    if "database is locked" in text:
        return locked(store)
    if store.database and ("malformed" in text or "file is not a database" in text):
        return damaged(store.database, cause)
    back_up = "back it up, then: mlflow db upgrade"
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return TrackingError(
            f"the tracking store {store} was made by another version of MLflow",
            found=cause,
            remedy=find_remedy("migrate the store", f"{back_up} {store}")
            if store.database
            else f"{back_up} $MLFLOW_TRACKING_URI",
        )
    if "not authenticated" in text:
        return TrackingError(
            f"the tracking server {store} requires a login",
            expected="in the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            found=cause,
            remedy="set them, then run the same command again",
        )
    if "lock timeout" in text:
        return TrackingError(
            f"cannot create the tables of {store}: another process is creating them and does not finish",
            found=cause,
            remedy="wait for it or end it, then run the same command again",
            temporary=True,
        )
    is_configured = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    if store.is_server and is_configured and is_timeout(error):
        return TrackingError(
            f"the tracking server {store} stopped responding",
            expected="a response within a minute",
            found=cause,
            remedy="check that it is running, then run the same command again",
            temporary=True,
        )
    if store.is_server and not is_configured:  # the project's own server
        remedy = "run the same command again: if the server is gone, it continues without it, on the same records"
    elif "OperationalError" in text:
        remedy = "check that the database is running, writable and its disk not full; then run the same command again"
    elif store.artifacts is None:
        remedy = "check MLFLOW_TRACKING_URI and its server, then run the same command again"
    else:
        remedy = "run the same command again; if it fails again, move the store away, then: pipeline sync"
    return TrackingError(
        f"the tracking store {store} refused a request", found=cause, remedy=remedy, temporary=is_timeout(error)
    )


def damaged(database: Path, found: str) -> TrackingError:
    """Return the error for a damaged database of the default store."""
    return TrackingError(
        f"the tracking store {database} is damaged",
        expected="an SQLite database that MLflow created",
        found=found,
        remedy=f"{find_remedy('restore the store', 'restore a backup. Without one')}, the runs, the registered "
        "versions, the history of the aliases and the decisions are lost, except for the model in this workspace: "
        f"mv {database} {database}.damaged, then pipeline sync",
    )


def locked(store: "Store") -> TrackingError:
    """Return the error for a database that another process keeps locked."""
    return TrackingError(
        f"the tracking store {store} is locked",
        expected="access within some seconds",
        found="another process keeps writing to it",
        remedy="end that process (an open database browser?), then run the same command again",
    )

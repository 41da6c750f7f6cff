"""Relocation of the default store after the project folder was moved or copied: rewrite its file addresses.

MLflow records absolute addresses. A tag of MLflow's default experiment holds the folder that they are for. If the
database is opened in another folder, every address below the former folder is rewritten to the present one. A copy
therefore uses its own files and leaves the original's unchanged. Addresses elsewhere (a bucket, another disk) are kept.
"""

import sqlite3
from pathlib import Path

ROOT_TAG = "project.root"  # of the default experiment: the folder of the database when it was last opened
DEFAULT_EXPERIMENT = 0
FOLDER = "mlruns"  # in the database's folder
# All columns of MLflow's schema with addresses of files.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
    ("workspaces", "default_artifact_root"),
)


def find_former_root(connection: sqlite3.Connection, root: Path) -> Path | None:
    """Return the folder that a database's addresses are for. None if it is `root`, the present one, or unknown."""
    if not _columns(connection, "experiment_tags"):  # not MLflow's database, or incomplete
        return None
    query = "SELECT value FROM experiment_tags WHERE experiment_id = ? AND key = ?"
    found = connection.execute(query, (DEFAULT_EXPERIMENT, ROOT_TAG)).fetchone()
    former = Path(found[0]) if found else _first_root(connection)
    return former if former and former != root else None


def record_root(connection: sqlite3.Connection, root: Path) -> None:
    """Set the folder that a database's addresses are for."""
    values = (DEFAULT_EXPERIMENT, ROOT_TAG, str(root))
    connection.execute("INSERT OR REPLACE INTO experiment_tags (experiment_id, key, value) VALUES (?, ?, ?)", values)


def rewrite(connection: sqlite3.Connection, former: Path, root: Path) -> int:
    """Replace the folder in all addresses, in one transaction. Returns the number of changed addresses."""
    count = 0
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, column in ADDRESSES:
            if column not in _columns(connection, table):  # the schema of an older MLflow
                continue
            # MLflow writes both URIs and plain paths.
            for old, new in ((former.as_uri(), root.as_uri()), (str(former), str(root))):
                count += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                ).rowcount
        record_root(connection, root)
    return count


def _first_root(connection: sqlite3.Connection) -> Path | None:
    """Derive the folder from the default experiment's `mlruns/`, for a database without the tag."""
    query = "SELECT artifact_location FROM experiments WHERE experiment_id = ?"
    found = connection.execute(query, (DEFAULT_EXPERIMENT,)).fetchone()
    if not found:
        return None
    from urllib.parse import unquote

    address = str(found[0])
    path = Path(unquote(address.removeprefix("file://")) if address.startswith("file://") else address)
    return path.parent.parent if path.is_absolute() and path.parent.name == FOLDER else None


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}

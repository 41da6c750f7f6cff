"""The addresses of files in the default store's database, made to follow a project folder that was moved or copied.

MLflow records absolute addresses. So the database also says which folder it was made for, in a tag of MLflow's default
experiment; where it stands in another one when it is opened, every address below the former folder is rewritten to
below the present one. A copy so uses its own files and leaves the original's alone. What lies elsewhere (a bucket, a
disk that somebody chose) is not touched.
"""

import sqlite3
from pathlib import Path

ROOT_TAG = "project.root"  # of the default experiment: the folder of the database when it was last opened
DEFAULT_EXPERIMENT = 0
FOLDER = "mlruns"  # beside the database
# Every column of MLflow's schema that holds addresses of files.
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
    """The folder that a database's addresses are of, where that is not `root`, its present one."""
    if not _columns(connection, "experiment_tags"):  # not MLflow's, or not made to the end
        return None
    query = "SELECT value FROM experiment_tags WHERE experiment_id = ? AND key = ?"
    found = connection.execute(query, (DEFAULT_EXPERIMENT, ROOT_TAG)).fetchone()
    former = Path(found[0]) if found else _first_root(connection)
    return former if former and former != root else None


def record_root(connection: sqlite3.Connection, root: Path) -> None:
    """Say in a database that its addresses are of this folder."""
    values = (DEFAULT_EXPERIMENT, ROOT_TAG, str(root))
    connection.execute("INSERT OR REPLACE INTO experiment_tags (experiment_id, key, value) VALUES (?, ?, ?)", values)


def rewrite(connection: sqlite3.Connection, former: Path, root: Path) -> int:
    """Let every address below one folder be below another, all or none of them; how many there were."""
    count = 0
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, column in ADDRESSES:
            if column not in _columns(connection, table):  # the schema of an older MLflow
                continue
            # As URIs and as plain paths: MLflow writes both.
            for old, new in ((former.as_uri(), root.as_uri()), (str(former), str(root))):
                count += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                ).rowcount
        record_root(connection, root)
    return count


def _first_root(connection: sqlite3.Connection) -> Path | None:
    """Of a database without the tag: the folder whose `mlruns/` the default experiment was given when it was made."""
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

"""The store of the sweeps: a journal file for each, or tables in the team's PostgreSQL.

A sweep is an Optuna study. `PIPELINE_SWEEP_STORE=postgresql://…` names a database; without it, a PostgreSQL in
`MLFLOW_TRACKING_URI` is used, in a schema of its own. Otherwise the study is in `.pipeline/sweeps/NAME/`.
"""

import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import TrackingError, WorkspaceError
from pipeline.extras import require_packages
from pipeline.workspace import STATE, lock, main_repository, make_state

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

STORE_VARIABLE = "PIPELINE_SWEEP_STORE"
SCHEMA = "sweeps"  # in the database
JOURNAL = "journal.log"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def directory(name: str = "") -> Path:
    """Return the directory of a sweep, or of all sweeps, in the main repository."""
    return main_repository() / STATE / "sweeps" / name


def database() -> str | None:
    """Return the address of the database that has the sweeps. None: they are in journal files."""
    address = os.environ.get(STORE_VARIABLE) or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if os.environ.get(STORE_VARIABLE) and not address.startswith("postgres"):
        raise WorkspaceError(f"{STORE_VARIABLE} is not usable", expected="postgresql://…", found=address)
    return (
        re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg2://", address) if address[:8] == "postgres" else None
    )


def require_optuna() -> None:
    """Refuse to continue without Optuna, or without the driver of the configured database."""
    require_packages("a sweep", "optuna", *(["psycopg2"] if database() else []))
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def require_name(name: str) -> None:
    """Refuse a name that is not that of a directory.

    Raises:
        WorkspaceError: it has other characters.
    """
    if not NAME.fullmatch(name):
        raise WorkspaceError(f"{name!r} cannot be the name of a sweep", expected="letters, digits, `.`, `_` and `-`")


def find_study(name: str) -> "Study | None":
    """Return the study of a sweep. None if there is none."""
    require_optuna()
    import optuna

    if database() is None and not (directory(_of_sweep(name)) / JOURNAL).is_file():
        return None
    with explained():
        storage = _open(_of_sweep(name))
        names = [summary.study_name for summary in storage.get_all_studies()]
        return optuna.load_study(study_name=name, storage=storage) if name in names else None


def create_study(name: str) -> "Study":
    """Create the study of a sweep, or return the existing one."""
    require_optuna()
    import optuna

    with explained():
        storage = _open(_of_sweep(name))
        return optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)


def list_studies() -> "dict[str, Study]":
    """Return the study of every sweep by name, without their confirmations."""
    require_optuna()
    import optuna

    if database() is None:
        names = [path.parent.name for path in sorted(directory().glob(f"*/{JOURNAL}"))]
        return {name: study for name in names if (study := find_study(name))}
    with explained():
        storage = _open("")
        names = sorted(study.study_name for study in storage.get_all_studies() if "/" not in study.study_name)
        return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def get_all(study: "Study") -> list[Any]:
    """Return the trials of a study, by number."""
    with explained():
        return study.get_trials(deepcopy=False)


@contextmanager
def claim_lock(name: str) -> Iterator[None]:
    """Hold the lock under which workers take trials, across all machines of a sweep."""
    name, address = _of_sweep(name), database()
    if address is None:
        with lock(f"sweep {name}", wait=-1, remedy="", root=main_repository()):
            yield
        return
    import sqlalchemy

    with explained(), _connected(address) as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": f"sweep {name}"})
        yield


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error of the database into a TrackingError."""
    import sqlalchemy
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise TrackingError(
            f"the database of the sweeps, {database()}, cannot be used",
            found=str(error.__cause__ or error).partition("\n")[0],
            remedy=f"start it, or correct {STORE_VARIABLE}; then run the same command again",
            temporary=True,
        ) from error


def _of_sweep(name: str) -> str:
    return name.partition("/")[0]


def _open(name: str) -> "BaseStorage":
    """Open the storage of a sweep."""
    from optuna import storages
    from optuna.storages import journal

    address = database()
    if address is None:
        make_state(main_repository())
        directory(name).mkdir(parents=True, exist_ok=True)
        path = directory(name) / JOURNAL
        backend = journal.JournalFileBackend(str(path), _JournalLock(path))  # type: ignore[arg-type]  # same methods
        return storages.JournalStorage(backend)
    import sqlalchemy

    with _connected(address) as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('create sweeps'))"))
        connection.execute(sqlalchemy.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        return storages.RDBStorage(address, engine_kwargs=_options())  # creates its tables, under the lock


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Open a connection that commits each statement. Advisory locks end with it, also after `kill -9`."""
    import sqlalchemy

    pool = sqlalchemy.pool.NullPool
    engine = sqlalchemy.create_engine(address, **_options(), poolclass=pool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


def _options() -> dict[str, Any]:
    return {"connect_args": {"options": f"-c search_path={SCHEMA}", "connect_timeout": 10}}


class _JournalLock:
    """The lock of a journal file. The system releases it when its holder is killed; Optuna's would last for 30 s."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> bool:
        self._file = self._path.open("rb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        _remove_torn_line(self._path)
        return True

    def release(self) -> None:
        self._file.close()


def _remove_torn_line(path: Path) -> None:
    """Remove a last line that a power failure truncated: with another one behind it, Optuna cannot read the file."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read(1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)

"""Backup of the embedded stores to one archive with a manifest, and restore.

The archive contains MLflow's database and files, Prefect's database, and the files of `.pipeline/` that cannot be
recreated. SQLite's backup API copies the databases, so other processes may write to them meanwhile. The databases are
copied before the files, so that every file of a copied record is in the archive. DVC's cache is not included: back it
up with `dvc push`.

A restore unpacks to a temporary directory, checks every digest, and then only renames. The replaced files are kept. If
a restore is interrupted between two renames, the next restore completes it; until then the store does not open.
"""

import errno
import hashlib
import io
import json
import os
import shlex
import shutil
import sqlite3
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.care.exclusive_access import alone
from pipeline.care.prefect_database import find_file
from pipeline.errors import WorkspaceError
from pipeline.files import (
    PRIVATE,
    atomic_file,
    file_digest,
    make_private,
    read_json,
    remove_abandoned,
    write_json,
)
from pipeline.redaction import without_password
from pipeline.tracking.database import RESTORING
from pipeline.tracking.relocation import FOLDER
from pipeline.tracking.store import locate_unserved
from pipeline.tracking.store_errors import is_damage
from pipeline.workspace import STATE, lock, main_repository, make_state

FORMAT = 1
SUFFIX = ".tar.gz"
MANIFEST = "manifest.json"
MLFLOW, PREFECT = "mlflow.db", "prefect.db"  # names in the archive, next to `mlruns/` and `state/`
KEPT_STATE = ("quarantine", "retraining", "monitoring/told.json")  # below `.pipeline/`
SIDECARS = ("-journal", "-wal", "-shm")  # SQLite would apply them to any database of that name
SCRATCH = "backup.partial"  # directory in `.pipeline/` for the copies to archive
STAGED, ASIDE = "restore.partial", "replaced"  # directories in `.pipeline/`; the time is appended to the second


@dataclass(frozen=True)
class Backup:
    """Result of a backup."""

    path: Path
    files: int
    bytes: int  # size of the archive
    left_out: tuple[str, ...]  # data not in the archive, with the command that backs it up


@dataclass(frozen=True)
class Restored:
    """Result of a restore."""

    made: str  # UTC time of the backup
    files: int
    aside: tuple[Path, ...]  # directories with the replaced files


def back_up(workspace: Path, target: Path) -> Backup:
    """Write the embedded stores of a workspace's main repository to a new archive.

    Args:
        target: a directory for a file named after project and time, or a file name ending in `.tar.gz`.

    Raises:
        WorkspaceError: the store is not embedded or does not exist, or the file exists.
    """
    root = main_repository(workspace)
    database = require_embedded(workspace)
    if not database.exists():
        raise WorkspaceError("there is nothing to back up yet", found=f"no {database}", remedy="pipeline run")
    now = time.gmtime()
    if not target.name.endswith(SUFFIX):
        target = target / f"{root.name}-{time.strftime('%Y%m%dT%H%M%SZ', now)}{SUFFIX}"
    if target.exists():
        raise WorkspaceError(f"{target} is there already", remedy="choose another name, or give a directory")
    prefect = find_file(root)
    left_out = ["DVC's cache: dvc push"]
    if prefect is None:
        left_out.append("Prefect's database, which is a server's: pg_dump")
    with (
        lock("backup", wait=0, remedy="wait for it", root=root),
        _scratch(root) as scratch,
        atomic_file(target, mode=PRIVATE) as partial,
        tarfile.open(partial, "w:gz", compresslevel=1) as archive,
    ):
        remove_abandoned(target.parent, f"*{SUFFIX}")  # a killed backup has another time in its name
        writer = _Writer(archive, scratch)
        for name, file in ((MLFLOW, database), (PREFECT, prefect)):
            if file and file.exists():
                copy_database(file, scratch / name)
                writer.add(scratch / name, name)
        for path in _files(database.parent / FOLDER):
            writer.add(path, f"{FOLDER}/{path.relative_to(database.parent / FOLDER).as_posix()}")
        for name in KEPT_STATE:
            for path in _files(root / STATE / name):
                writer.add(path, f"state/{path.relative_to(root / STATE).as_posix()}")
        about = {"format": FORMAT, "made": time.strftime("%Y-%m-%d %H:%M:%S", now), "root": str(database.parent)}
        versions = {name: version(name) for name in ("mlflow", "prefect")}
        writer.add_manifest({**about, "versions": versions, "files": writer.digests})
    with target.open("rb") as written:
        os.fsync(written)
    return Backup(target, len(writer.digests), target.stat().st_size, tuple(left_out))


def restore(workspace: Path, source: Path, *, replace: bool, with_prefect: bool) -> Restored:
    """Replace a workspace's stores by those of an archive.

    Args:
        replace: move existing files aside. If False, refuse to restore over existing files.
        with_prefect: also restore Prefect's database, which this user's other projects may share.

    Raises:
        WorkspaceError: the archive is damaged or not from `pipeline backup`, files exist, a process is running, or the
            store is not embedded. Nothing has changed.
    """
    root, database = main_repository(workspace), require_embedded(workspace)
    with alone(workspace, beside_servers=False):
        if (database.parent / RESTORING).exists():
            _complete(database.parent)
        staged = database.parent / STATE / STAGED
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            manifest = _unpack(source, staged)
            make_private(*staged.rglob("*"))
            targets = [(staged / MLFLOW, database), (staged / FOLDER, database.parent / FOLDER)]
            targets += [(staged / "state" / name, root / STATE / name) for name in KEPT_STATE]
            if with_prefect and (prefect := find_file(root)):
                targets.append((staged / PREFECT, prefect))
            targets = [(new, target) for new, target in targets if new.exists()]
            files = sum(1 for new, _ in targets for _ in _files(new))
            former = [path for _, target in targets for path in (target, *sidecars(target)) if path.exists()]
            if former and not replace:
                raise WorkspaceError(
                    "a restore would replace what is here",
                    expected="none of these yet",
                    found=", ".join(map(str, former)),
                    remedy=f"pipeline restore {shlex.quote(str(source))} --replace: what is here is kept aside",
                )
            aside = f"{ASIDE}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            moves = [(path, state_beside(path) / aside / path.name) for path in former]
            moves += [(_bring_beside(new, target), target) for new, target in targets]
            write_json(database.parent / RESTORING, {"moves": [[str(old), str(new)] for old, new in moves]})
            _complete(database.parent)
        finally:
            if not (database.parent / RESTORING).exists():
                shutil.rmtree(staged, ignore_errors=True)
    kept = tuple(dict.fromkeys(new.parent for _, new in moves[: len(former)]))
    return Restored(manifest["made"], files, kept)


def require_embedded(workspace: Path) -> Path:
    """Return the database of the embedded MLflow store.

    Raises:
        WorkspaceError: another store is configured, which has its own backup tools.
    """
    store = locate_unserved(workspace)
    remedies = {"http": "back it up where its server runs", "postgresql": "pg_dump it", "mysql": "mysqldump it"}
    if store.database is None:
        remedy = next(
            (text for scheme, text in remedies.items() if store.uri.startswith(scheme)), "copy it by its means"
        )
        raise WorkspaceError(
            f"MLflow's store is not the project's own but {store}",
            expected="mlflow.db and mlruns/ in the project",
            remedy=f"{remedy}; for a bucket with its files, switch versioning on",
        )
    if store.artifacts != (database_folder := (store.database.parent / FOLDER).as_uri()):
        raise WorkspaceError(
            "MLflow's files are not in the project",
            expected=database_folder,
            found=without_password(store.artifacts or ""),
            remedy="switch versioning on for that bucket, and unset MLFLOW_DEFAULT_ARTIFACT_ROOT to back up the rest",
        )
    return store.database


def copy_database(file: Path, copy: Path) -> None:
    """Copy an SQLite database that other processes may use. The copy is consistent and readable only by its owner.

    Raises:
        WorkspaceError: the database is damaged.
        OSError: the copy cannot be written.
    """
    copy.touch(PRIVATE)
    try:
        with (
            closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as to,
        ):
            source.backup(to)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise _damaged(file, str(error)) from None
        if "full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy)) from None
        raise WorkspaceError(f"{file} cannot be copied to {copy}", found=str(error)) from None
    if found := find_damage(copy):
        raise _damaged(file, found)


def find_damage(database: Path) -> str:
    """Run SQLite's check on a database. Returns the problem found, or an empty string."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA quick_check").fetchone()
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    return str(found) if found != "ok" else "" if tables != (0,) else "it has no tables"


def _damaged(file: Path, found: str) -> WorkspaceError:
    return WorkspaceError(
        f"{file} is damaged",
        expected="a sound SQLite database",
        found=found,
        remedy="pipeline restore BACKUP --replace, if there is an earlier backup",
    )


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Yield an empty directory for a backup. First removes files left by a killed backup."""
    scratch = make_state(root) / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def state_beside(path: Path) -> Path:
    """Find the `.pipeline/` on the same disk as a file: its project's, or one in the file's own directory.

    A rename is atomic only within a disk. The second case is Prefect's database.
    """
    return next((parent for parent in path.parents if parent.name == STATE.name), path.parent / STATE)


class _Writer:
    """Writer of an archive that records the digests of its files."""

    def __init__(self, archive: tarfile.TarFile, scratch: Path) -> None:
        self.digests: dict[str, str] = {}
        self._archive, self._scratch = archive, scratch

    def add(self, path: Path, name: str) -> None:
        """Add a file with its current content. Skip it if it no longer exists."""
        try:
            with path.open("rb") as file, (self._scratch / "copy").open("w+b") as copy:
                try:
                    shutil.copyfileobj(file, copy)
                    copy.flush()
                except OSError as error:  # this error has no file name
                    raise OSError(error.errno, error.strerror, str(path), None, copy.name) from None
                self._add(copy, name)
        except FileNotFoundError:
            return

    def add_manifest(self, content: dict[str, Any]) -> None:
        """Add the manifest as the last file."""
        self._add(io.BytesIO(json.dumps(content, indent=2, sort_keys=True).encode()), MANIFEST)
        del self.digests[MANIFEST]

    def _add(self, content: IO[bytes], name: str) -> None:
        info = tarfile.TarInfo(name)
        info.mode = PRIVATE
        info.size, info.mtime = content.seek(0, os.SEEK_END), int(time.time())
        content.seek(0)
        self.digests[name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
        content.seek(0)
        self._archive.addfile(info, content)


def _unpack(source: Path, directory: Path) -> dict[str, Any]:
    """Unpack an archive, compare every file with its manifest, check the databases, and return the manifest."""

    def refuse_links(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo:
        if not (member.isreg() or member.isdir()):
            raise _not_ours(source, f"{member.name} is neither a file nor a directory")
        return tarfile.data_filter(member, place)

    try:
        with tarfile.open(source, "r:gz") as archive:
            archive.extractall(directory, filter=refuse_links)
        manifest = read_json(directory / MANIFEST)
    except FileNotFoundError:
        raise _not_ours(source, "no such file, or no manifest in it") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk, not a damaged archive
            raise OSError(error.errno, error.strerror, error.filename or str(directory)) from None
        raise _not_ours(source, str(error)) from None
    except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise _not_ours(source, str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise _not_ours(source, f"format {found}, where this version reads {FORMAT}")
    files = manifest.get("files")
    if not isinstance(manifest.get("made"), str) or not isinstance(files, dict):
        raise _not_ours(source, f"{MANIFEST} does not say when it was made, or which files are in it")
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()} - {MANIFEST}
    for name in sorted(there ^ files.keys()):
        raise _not_ours(source, f"{name} is {'not in its manifest' if name in there else 'missing'}")
    for name, digest in files.items():
        if file_digest(directory / PurePosixPath(name)) != digest:
            raise _not_ours(source, f"{name} has another digest than its manifest says")
    if MLFLOW not in files:
        raise _not_ours(source, f"no {MLFLOW} in it")
    for name in files.keys() & {MLFLOW, PREFECT}:
        if found := find_damage(directory / name):
            raise _not_ours(source, f"{name} is not a sound SQLite database: {found}")
    return manifest


def _not_ours(source: Path, found: str) -> WorkspaceError:
    return WorkspaceError(
        f"{source} cannot be restored from", expected="an unaltered archive of `pipeline backup`", found=found
    )


def _complete(folder: Path) -> None:
    """Make the renames listed in the journal. Skip those made before a kill."""
    for old, new in read_json(folder / RESTORING)["moves"]:
        if Path(old).exists() and not Path(new).exists():
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            os.rename(old, new)
    (folder / RESTORING).unlink()


def _bring_beside(new: Path, target: Path) -> Path:
    """Move an unpacked file or directory to the disk of its target."""
    place = state_beside(target) / STAGED
    if new.is_relative_to(place):
        return new
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(exist_ok=True)
    copy = place / target.name
    shutil.rmtree(copy, ignore_errors=True)
    copy.unlink(missing_ok=True)
    shutil.move(new, copy)
    return copy


def sidecars(path: Path) -> list[Path]:
    """List the files that SQLite may create next to a database."""
    return [path.with_name(path.name + ending) for ending in SIDECARS] if path.suffix == ".db" else []


def _files(path: Path) -> Iterator[Path]:
    """Yield the files at or below a path in a fixed order, without partly written ones."""
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.endswith(".partial"))

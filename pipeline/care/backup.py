"""The embedded stores as one archive that says what is in it, and back.

In it: MLflow's database and files, Prefect's database, and what `.pipeline/` holds that nothing can make again. The
databases are copied by SQLite's own means while others write to them, and before the files, so that every file that a
copied record speaks of is there. DVC's cache is not in it: `dvc push` to a remote is its backup.

A restore unpacks beside what is there, compares every digest, and then only renames. What was there before is kept
aside. Cut off between two renames, it is completed by the next one; until then the store does not open.
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
from pipeline.tracking.relocation import FOLDER
from pipeline.tracking.store import RESTORING, is_damage, locate_unserved
from pipeline.workspace import STATE, lock, main_repository, make_state

FORMAT = 1
SUFFIX = ".tar.gz"
MANIFEST = "manifest.json"
MLFLOW, PREFECT = "mlflow.db", "prefect.db"  # their names in the archive, beside `mlruns/` and `state/`
KEPT_STATE = ("quarantine", "retraining", "monitoring/told.json")  # below `.pipeline/`
SIDECARS = ("-journal", "-wal", "-shm")  # of SQLite: beside another database they would be taken for its own
SCRATCH = "backup.partial"  # directory of `.pipeline/` with the copies that go into an archive
STAGED, ASIDE = "restore.partial", "replaced"  # directories of `.pipeline/`; the second with the time


@dataclass(frozen=True)
class Backup:
    """An archive that was made."""

    path: Path
    files: int
    bytes: int  # of the archive
    left_out: tuple[str, ...]  # what is not in it, with what backs that up


@dataclass(frozen=True)
class Restored:
    """What a restore put in place."""

    made: str  # when the backup was, UTC
    files: int
    aside: tuple[Path, ...]  # where the former state is now


def back_up(workspace: Path, target: Path) -> Backup:
    """Write the embedded stores of a workspace's main repository into a new archive.

    Args:
        target: a directory, which gets a file named after project and time; or the file itself, ending in `.tar.gz`.

    Raises:
        WorkspaceError: the store is a team's, there is none, or the file exists.
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
        remove_abandoned(target.parent, f"*{SUFFIX}")  # whose names hold other times
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
    """Put what an archive holds in place of a workspace's stores.

    Args:
        replace: put aside what is there; otherwise refuse where anything is.
        with_prefect: Prefect's database too, which other projects of this user may share.

    Raises:
        WorkspaceError: the archive is damaged or not one of ours, something is there or running, or the store is a
            team's. Nothing has changed then.
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
    """The default store's database.

    Raises:
        WorkspaceError: a team's store is configured, which has means of its own.
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
    """Copy an SQLite database that others may be using. The copy is consistent, and for its owner only.

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
    """What SQLite finds wrong with a database, such as that it is none; empty if it is sound."""
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
    """An empty directory for the time of a backup; what a killed backup left in it is removed first."""
    scratch = make_state(root) / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def state_beside(path: Path) -> Path:
    """The `.pipeline/` on whose disk a file is: its project's, or one in its own folder, as beside Prefect's database.

    Only on one disk is a rename all or nothing.
    """
    return next((parent for parent in path.parents if parent.name == STATE.name), path.parent / STATE)


class _Writer:
    """An archive in the making, and the digests of what is in it."""

    def __init__(self, archive: tarfile.TarFile, scratch: Path) -> None:
        self.digests: dict[str, str] = {}
        self._archive, self._scratch = archive, scratch

    def add(self, path: Path, name: str) -> None:
        """Add a file as it is when it is read; one that has gone meanwhile is left out."""
        try:
            with path.open("rb") as file, (self._scratch / "copy").open("w+b") as copy:
                try:
                    shutil.copyfileobj(file, copy)
                    copy.flush()
                except OSError as error:  # which names no file
                    raise OSError(error.errno, error.strerror, str(path), None, copy.name) from None
                self._add(copy, name)
        except FileNotFoundError:
            return

    def add_manifest(self, content: dict[str, Any]) -> None:
        """Add what describes the others, as the last."""
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # which is no fault of the archive
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
    """Make the renames that a journal tells of. Those that were made before a kill are passed over."""
    for old, new in read_json(folder / RESTORING)["moves"]:
        if Path(old).exists() and not Path(new).exists():
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            os.rename(old, new)
    (folder / RESTORING).unlink()


def _bring_beside(new: Path, target: Path) -> Path:
    """Have a file or directory that was unpacked on the disk of the place that it is to take."""
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
    """The files that SQLite may have beside a database."""
    return [path.with_name(path.name + ending) for ending in SIDECARS] if path.suffix == ".db" else []


def _files(path: Path) -> Iterator[Path]:
    """The files at or below a path, in a fixed order; without what was being written."""
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.endswith(".partial"))

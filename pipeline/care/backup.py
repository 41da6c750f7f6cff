"""Backup of the embedded stores to one archive with a manifest, and restore.

The archive contains MLflow's database and files, Prefect's database, and the files of `.pipeline/` that cannot be
recreated. SQLite's backup API copies the databases, so other processes may write to them meanwhile. The databases are
copied before the files, so that every file of a copied record is in the archive. DVC's cache is not included: back it
up with `dvc push`.

A restore unpacks to a temporary directory, checks every digest, and then only renames. The replaced files are kept. If
a restore is interrupted between two renames, the next restore completes it; until then the store does not open.
"""

import errno
import os
import shlex
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.care.exclusive_access import exclusive_access
from pipeline.care.prefect_database import find_file
from pipeline.care.sqlite import copy_database, find_damage, sidecars
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
from pipeline.tracking.database_setup import RESTORING
from pipeline.tracking.relocation import FOLDER
from pipeline.tracking.store import locate_unserved
from pipeline.workspace import STATE, lock, main_repository, make_state

FORMAT = 1
SUFFIX = ".tar.gz"
MANIFEST = "manifest.json"
MLFLOW, PREFECT = "mlflow.db", "prefect.db"  # names in the archive, next to `mlruns/` and `state/`
# Below `.pipeline/`; the last: sent notices.
KEPT_STATE = (
    "quarantine",
    "retraining",
    "feedback",
    "events.jsonl",
    "sweeps",
    "monitoring/told.json",
    "monitoring/traffic-told.json",
)
SCRATCH = "backup.partial"  # directory in `.pipeline/` for the copies to archive
UNPACKED, REPLACED = "restore.partial", "replaced"  # directories in `.pipeline/`; the second has the time in its name


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
    root, database = main_repository(workspace), require_embedded(workspace)
    if not database.exists():
        raise WorkspaceError("there is nothing to back up yet", found=f"no {database}", remedy="pipeline run")
    now = time.gmtime()
    if not target.name.endswith(SUFFIX):
        target = target / f"{root.name}-{time.strftime('%Y%m%dT%H%M%SZ', now)}{SUFFIX}"
    if target.exists():
        raise WorkspaceError(f"{target} exists already", remedy="choose another name, or give a directory")
    prefect = find_file(root)
    digests = {}
    with (
        lock("backup", wait=0, remedy="wait for it", root=root),
        _scratch(root) as scratch,
        atomic_file(target, mode=PRIVATE) as partial,
        tarfile.open(partial, "w:gz", compresslevel=1) as archive,
    ):
        remove_abandoned(target.parent, f"*{SUFFIX}")  # a killed backup has another time in its name
        for path, name in _find_files(root, database, prefect, scratch):
            copy = scratch / "copy"  # another process may change the file
            try:
                shutil.copyfile(path, copy)
            except FileNotFoundError:
                continue
            digests[name] = file_digest(copy)
            _add(archive, copy, name)
        about = {"format": FORMAT, "made": time.strftime("%Y-%m-%d %H:%M:%S", now), "root": str(database.parent)}
        versions = {name: version(name) for name in ("mlflow", "prefect")}
        write_json(scratch / MANIFEST, {**about, "versions": versions, "files": digests})
        _add(archive, scratch / MANIFEST, MANIFEST)
    with target.open("rb") as written:
        os.fsync(written)
    left_out = ["DVC's cache: dvc push", *([] if prefect else ["Prefect's database, which is a server's: pg_dump"])]
    return Backup(target, len(digests), target.stat().st_size, tuple(left_out))


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
    journal = database.parent / RESTORING
    with exclusive_access(workspace, with_servers=True):
        if journal.exists():
            _complete(journal)
        unpacked = database.parent / STATE / UNPACKED
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        try:
            manifest = _unpack(source, unpacked)
            make_private(*unpacked.rglob("*"))
            targets = {unpacked / MLFLOW: database, unpacked / FOLDER: database.parent / FOLDER}
            targets |= {unpacked / "state" / name: root / STATE / name for name in KEPT_STATE}
            if with_prefect and (prefect := find_file(root)):
                targets[unpacked / PREFECT] = prefect
            targets = {new: target for new, target in targets.items() if new.exists()}
            files = sum(1 for new in targets for _ in _files_below(new))
            former = [path for target in targets.values() for path in (target, *sidecars(target)) if path.exists()]
            if former and not replace:
                raise WorkspaceError(
                    "a restore would replace existing files",
                    expected="none of these files",
                    found=", ".join(map(str, former)),
                    remedy=f"pipeline restore {shlex.quote(str(source))} --replace: it keeps the existing files",
                )
            folder = f"{REPLACED}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            aside = {path: state_beside(path) / folder / path.name for path in former}
            moves = [*aside.items(), *((_bring_beside(new, target), target) for new, target in targets.items())]
            write_json(journal, {"moves": [[str(old), str(new)] for old, new in moves]})
            _complete(journal)
        finally:
            if not journal.exists():
                shutil.rmtree(unpacked, ignore_errors=True)
    return Restored(manifest["made"], files, tuple(dict.fromkeys(new.parent for new in aside.values())))


def require_embedded(workspace: Path) -> Path:
    """Return the database of the embedded MLflow store.

    Raises:
        WorkspaceError: another store is configured, which has its own backup tools.
    """
    store = locate_unserved(workspace)
    if store.database is None:
        remedies = {"http": "back it up where its server runs", "postgresql": "pg_dump it", "mysql": "mysqldump it"}
        fitting = (text for scheme, text in remedies.items() if store.uri.startswith(scheme))
        raise WorkspaceError(
            f"MLflow's store is not the project's own but {store}",
            expected="mlflow.db and mlruns/ in the project",
            remedy=f"{next(fitting, 'copy it with its own tools')}; for a bucket with its files, switch versioning on",
        )
    if store.artifacts != (embedded := (store.database.parent / FOLDER).as_uri()):
        raise WorkspaceError(
            "MLflow's files are not in the project",
            expected=embedded,
            found=without_password(store.artifacts or ""),
            remedy="switch versioning on for that bucket, and unset MLFLOW_DEFAULT_ARTIFACT_ROOT to back up the rest",
        )
    return store.database


def state_beside(path: Path) -> Path:
    """Find the `.pipeline/` on the same disk as a file: its project's, or one in the file's own directory.

    A rename is atomic only within a disk. The second case is Prefect's database.
    """
    return next((parent for parent in path.parents if parent.name == STATE.name), path.parent / STATE)


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


def _find_files(root: Path, database: Path, prefect: Path | None, scratch: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files to archive and their names in the archive: first the copied databases."""
    for name, file in ((MLFLOW, database), (PREFECT, prefect)):
        if file and file.exists():
            copy_database(file, scratch / name)
            yield scratch / name, name
    places = {FOLDER: database.parent / FOLDER} | {f"state/{name}": root / STATE / name for name in KEPT_STATE}
    for name, place in places.items():
        for path in _files_below(place):
            yield path, str(PurePosixPath(name, path.relative_to(place)))


def _add(archive: tarfile.TarFile, file: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime = PRIVATE, file.stat().st_size, int(time.time())
    with file.open("rb") as content:
        archive.addfile(info, content)


def _unpack(source: Path, directory: Path) -> dict[str, Any]:
    """Unpack an archive, compare every file with its manifest, check the databases, and return the manifest."""

    def refuse_links(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo:
        if not (member.isreg() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is neither a file nor a directory")
        return tarfile.data_filter(member, place)

    try:
        with tarfile.open(source, "r:gz") as archive:
            archive.extractall(directory, filter=refuse_links)
        manifest = read_json(directory / MANIFEST)
        found = _find_mismatch(directory, manifest)
    except FileNotFoundError:
        found = "no such file, or no manifest in it"
    except (OSError, tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # not a damaged archive
            raise OSError(error.errno, error.strerror, error.filename or str(directory)) from None
        found = str(error)
    if found:
        raise WorkspaceError(
            f"{source} cannot be restored from", expected="an unaltered archive of `pipeline backup`", found=found
        )
    return dict(manifest)


def _find_mismatch(directory: Path, manifest: Any) -> str:
    """Find a difference between an unpacked archive and its manifest. Returns an empty string if there is none."""
    content = manifest if isinstance(manifest, dict) else {}
    if content.get("format") != FORMAT:
        return f"format {content.get('format')}, where this version reads {FORMAT}"
    files = content.get("files")
    if not isinstance(content.get("made"), str) or not isinstance(files, dict):
        return f"{MANIFEST} lacks the time of the backup or the list of its files"
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    for name in sorted((present - {MANIFEST}) ^ files.keys()):
        return f"{name} is {'not in its manifest' if name in present else 'missing'}"
    for name, digest in files.items():
        if file_digest(directory / name) != digest:
            return f"{name} has another digest than in its manifest"
    if MLFLOW not in files:
        return f"no {MLFLOW} in it"
    for name in files.keys() & {MLFLOW, PREFECT}:
        if damage := find_damage(directory / name):
            return f"{name} is a damaged SQLite database: {damage}"
    return ""


def _complete(journal: Path) -> None:
    """Make the renames listed in a journal. Skip those made before a kill."""
    for old, new in read_json(journal)["moves"]:
        if Path(old).exists() and not Path(new).exists():
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            os.rename(old, new)
    journal.unlink()


def _bring_beside(new: Path, target: Path) -> Path:
    """Move an unpacked file or directory to the disk of its target."""
    place = state_beside(target) / UNPACKED
    if new.is_relative_to(place):
        return new
    make_state(place.parent.parent)
    place.mkdir(exist_ok=True)
    copy = place / target.name
    shutil.rmtree(copy, ignore_errors=True)
    copy.unlink(missing_ok=True)
    return Path(shutil.move(new, copy))


def _files_below(path: Path) -> Iterator[Path]:
    """Yield the files at or below a path in a fixed order, without partly written ones."""
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.endswith(".partial"))

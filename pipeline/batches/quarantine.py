"""Digests, copies and the quarantine of the batches in `data/incoming/`, for retraining.

The user's folder is only read. A batch is identified by DVC's digest of its content, so that files on the disk can be
compared with a pointer in git. A bad batch stays in its place: quarantine is a record with its digest, and a retraining
does not take in the same content again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.batches.watcher import Files, read_batches
from pipeline.data.batches import INCOMING, POINTER, copy_batch, read_files, read_linked_files
from pipeline.errors import DataError
from pipeline.files import parse_yaml, read_kept, write_json
from pipeline.git import git
from pipeline.tracking.outputs import dvc_digest
from pipeline.workspace import STATE

QUARANTINE = STATE / "quarantine"
DIGESTS = STATE / "retraining" / "digests.json"  # cache, so that an unchanged batch is not read again
QUIET_SECONDS = 2.0  # a batch that changed within this time may still be arriving


@dataclass(frozen=True)
class Quarantined:
    """A batch that is not taken in until its content changes."""

    name: str
    digest: str  # DVC's MD5 of its content
    reason: str
    since: str  # UTC


def read_digests(root: Path, directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return DVC's digest of each batch in a directory, by name, and the reason for each that cannot be read.

    Unchanged files are not read again.

    Args:
        root: the main repository, which contains the cache of digests.
    """
    batches, odd = read_batches(directory)
    known: dict[str, dict[str, str]] = read_kept(root / DIGESTS) or {}
    now: dict[str, dict[str, str]] = {}
    for name, files in batches.items():
        try:
            now[str(directory / name)] = _digest(directory / name, files, known, hidden=False)
        except FileNotFoundError:  # it is being removed
            continue
        except OSError as error:
            odd[name] = error.strerror or str(error)
    here = {path for path in known if Path(path).parent == directory}
    if now != {path: known[path] for path in here}:
        write_json(root / DIGESTS, {path: known[path] for path in known if path not in here} | now)
    return {Path(path).name: entry["digest"] for path, entry in now.items()}, odd


def read_digest(root: Path, path: Path) -> str:
    """Return DVC's digest of a file or a directory that is no batch, with the same cache as for batches.

    Raises:
        OSError: it cannot be read.
    """
    known: dict[str, dict[str, str]] = read_kept(root / DIGESTS) or {}
    now = _digest(path, read_linked_files(path), known, hidden=True)
    if known.get(str(path)) != now:
        write_json(root / DIGESTS, known | {str(path): now})
    return now["digest"]


def _digest(path: Path, files: Files, known: Mapping[str, Mapping[str, str]], *, hidden: bool) -> dict[str, str]:
    """The cache entry of a path: the digest of its content, and the state of its files."""
    state, former = _sign(files), known.get(str(path), {})
    digest = former["digest"] if former.get("files") == state else dvc_digest(path, hidden=hidden)
    return {"files": state, "digest": digest}


def read_pointers(workspace: Path, commit: str) -> dict[str, str]:
    """Read DVC's digest of each batch that has a pointer in a commit, by name."""
    listed = git(workspace, "ls-tree", "-z", "--name-only", commit, f"{INCOMING}/").split("\0")
    paths = [path for path in listed if path.endswith(POINTER)]
    pointers = [parse_yaml(git(workspace, "show", f"{commit}:./{path}")) for path in paths]
    return {out["path"]: out["md5"] for pointer in pointers for out in pointer["outs"]}


def copy_whole(source: Path, target: Path, digest: str) -> bool:
    """Copy a batch, unless it is changing. Returns True if it was copied; otherwise nothing is left behind.

    Args:
        digest: the expected digest of the content.

    Raises:
        OSError: the batch cannot be read, or the disk is full.
    """
    try:
        if _is_stirring(source):
            time.sleep(QUIET_SECONDS)
        if _is_stirring(source):
            return False
        copy_batch(source, target)
        if dvc_digest(target) == digest == dvc_digest(source, hidden=False):
            return True
    except (FileNotFoundError, DataError):  # it is being removed, or a link was added
        pass
    remove(target)
    return False


def remove(path: Path) -> None:
    """Remove a file or a directory if it exists."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_quarantine(root: Path) -> dict[str, Quarantined]:
    """Read the quarantine records of a main repository, by digest."""
    files = sorted((root / QUARANTINE).glob("[!.]*.json"))
    return {path.stem: Quarantined(**record) for path in files if (record := read_kept(path))}


def find_quarantined(root: Path, digests: Mapping[str, str]) -> list[Quarantined]:
    """Find the quarantine records for the digests of batches, in the order of the batch names."""
    records = read_quarantine(root)
    return [records[digest] for _, digest in sorted(digests.items()) if digest in records]


def quarantine(root: Path, name: str, digest: str, reason: str) -> Quarantined:
    """Record that the content of a batch must not be taken in."""
    record = Quarantined(name, digest, reason, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
    write_json(root / QUARANTINE / f"{digest}.json", asdict(record))
    return record


def release(root: Path, digest: str) -> None:
    """Delete the quarantine record of content that was taken in later."""
    (root / QUARANTINE / f"{digest}.json").unlink(missing_ok=True)


def _is_stirring(batch: Path) -> bool:
    files, now = read_files(batch), time.time()
    return not files or any(0 <= now - changed / 1e9 < QUIET_SECONDS for _, changed in files.values())


def _sign(files: Files) -> str:
    """Hash the sizes and times of files, without reading the files."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()

"""Batches in `data/incoming/`: list them, compute their digests, and copy those that arrived completely.

The user's folder is only read. A batch is identified by DVC's digest of its content, so that files on the disk can be
compared with a pointer in git.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.batches import INCOMING, POINTER, copy_batch, read_files, read_linked_files
from pipeline.errors import DataError
from pipeline.files import parse_yaml, read_cached_json, write_json
from pipeline.git import git
from pipeline.tracking.stage_outputs import dvc_digest
from pipeline.workspace import STATE

DIGESTS = STATE / "retraining" / "digests.json"  # cache, so that an unchanged batch is not read again
RECENT_SECONDS = 2.0  # a batch that changed within this time may still be arriving

Files = Mapping[str, tuple[int, int]]  # of a batch, by path: bytes, and time of the last change in ns


def list_batches(directory: Path) -> tuple[dict[str, Files], dict[str, str]]:
    """List the batches of a directory with their files, and the reason for each that cannot be read, by name.

    Hidden entries and folders without files are not batches. A batch that contains a link is not read.
    """
    found, unreadable = {}, {}
    for path in directory.iterdir() if directory.is_dir() else ():
        if not path.name.startswith(".") and path.suffix != POINTER:
            try:
                found[path.name] = read_files(path)
            except DataError as error:
                unreadable[path.name] = error.problem.replace(f"{directory}/", "")
            except OSError as error:
                unreadable[path.name] = error.strerror or str(error)
    return {name: files for name, files in found.items() if files}, unreadable


def read_digests(root: Path, directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return DVC's digest of each batch in a directory, by name, and the reason for each that cannot be read.

    Unchanged files are not read again.

    Args:
        root: the main repository, which contains the cache of digests.
    """
    batches, unreadable = list_batches(directory)
    cached: dict[str, dict[str, str]] = read_cached_json(root / DIGESTS) or {}
    entries: dict[str, dict[str, str]] = {}
    for name, files in batches.items():
        try:
            entries[name] = _compute_entry(directory / name, files, cached, hidden=False)
        except FileNotFoundError:  # it is being removed
            continue
        except OSError as error:
            unreadable[name] = error.strerror or str(error)
    others = {path: entry for path, entry in cached.items() if Path(path).parent != directory}
    current = others | {str(directory / name): entry for name, entry in entries.items()}
    if current != cached:
        write_json(root / DIGESTS, current)
    return {name: entry["digest"] for name, entry in entries.items()}, unreadable


def read_digest(root: Path, path: Path) -> str:
    """Return DVC's digest of a file or a directory that is no batch, with the same cache as for batches.

    Raises:
        OSError: it cannot be read.
    """
    cached: dict[str, dict[str, str]] = read_cached_json(root / DIGESTS) or {}
    entry = _compute_entry(path, read_linked_files(path), cached, hidden=True)
    if cached.get(str(path)) != entry:
        write_json(root / DIGESTS, cached | {str(path): entry})
    return entry["digest"]


def _compute_entry(
    path: Path, files: Files, cached: Mapping[str, Mapping[str, str]], *, hidden: bool
) -> dict[str, str]:
    """Compute the cache entry of a path: the digest of its content, and the sizes and times of its files."""
    state, former = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest(), cached.get(str(path), {})
    digest = former["digest"] if former.get("files") == state else dvc_digest(path, hidden=hidden)
    return {"files": state, "digest": digest}


def read_pointers(workspace: Path, commit: str) -> dict[str, str]:
    """Read DVC's digest of each batch that has a pointer in a commit, by name."""
    listed = git(workspace, "ls-tree", "-z", "--name-only", commit, f"{INCOMING}/").split("\0")
    paths = [path for path in listed if path.endswith(POINTER)]
    pointers = [parse_yaml(git(workspace, "show", f"{commit}:./{path}")) for path in paths]
    return {out["path"]: out["md5"] for pointer in pointers for out in pointer["outs"]}


def copy_if_complete(source: Path, target: Path, digest: str) -> bool:
    """Copy a batch, unless it is changing. Returns True if it was copied; otherwise nothing is left behind.

    Args:
        digest: the expected digest of the content.

    Raises:
        OSError: the batch cannot be read, or the disk is full.
    """
    try:
        if _changed_recently(source):
            time.sleep(RECENT_SECONDS)
        if _changed_recently(source):
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


def _changed_recently(batch: Path) -> bool:
    files, now = read_files(batch), time.time()
    return not files or any(0 <= now - changed / 1e9 < RECENT_SECONDS for _, changed in files.values())

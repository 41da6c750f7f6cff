"""What lies in `data/incoming/` for a retraining to take in: by content, whole or not at all, and never twice if bad.

The reader's folder is only read. A batch is known by the digest that DVC gives its content, so that a pointer in git
and files on the disk can be compared. A bad one stays where it is; what is kept of it is a record under its digest.
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
DIGESTS = STATE / "retraining" / "digests.json"  # of what was read before, so that an unchanged batch is not read again
QUIET_SECONDS = 2.0  # a batch in which something was written since may still be arriving


@dataclass(frozen=True)
class Quarantined:
    """A batch that is not taken in, as long as its content stays as it is."""

    name: str
    digest: str  # DVC's MD5 of its content
    reason: str
    since: str  # UTC


def read_digests(root: Path, directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """DVC's digest of each batch in a directory, by name; and why of those that cannot be read.

    Files that nobody touched since the last time are not read.

    Args:
        root: the main repository, which remembers.
    """
    batches, odd = read_batches(directory)
    known: dict[str, dict[str, str]] = read_kept(root / DIGESTS) or {}
    now: dict[str, dict[str, str]] = {}
    for name, files in batches.items():
        try:
            now[str(directory / name)] = _digest(directory / name, files, known, hidden=False)
        except FileNotFoundError:  # it is being taken away
            continue
        except OSError as error:
            odd[name] = error.strerror or str(error)
    here = {path for path in known if Path(path).parent == directory}
    if now != {path: known[path] for path in here}:
        write_json(root / DIGESTS, {path: known[path] for path in known if path not in here} | now)
    return {Path(path).name: entry["digest"] for path, entry in now.items()}, odd


def read_digest(root: Path, path: Path) -> str:
    """DVC's digest of a file or a directory that is no batch, remembered as those of batches are.

    Raises:
        OSError: it cannot be read.
    """
    known: dict[str, dict[str, str]] = read_kept(root / DIGESTS) or {}
    now = _digest(path, read_linked_files(path), known, hidden=True)
    if known.get(str(path)) != now:
        write_json(root / DIGESTS, known | {str(path): now})
    return now["digest"]


def _digest(path: Path, files: Files, known: Mapping[str, Mapping[str, str]], *, hidden: bool) -> dict[str, str]:
    """What is remembered of a path: the digest of its content, and the state of the files that this was read from."""
    state, former = _sign(files), known.get(str(path), {})
    digest = former["digest"] if former.get("files") == state else dvc_digest(path, hidden=hidden)
    return {"files": state, "digest": digest}


def read_pointers(workspace: Path, commit: str) -> dict[str, str]:
    """DVC's digest of each batch that a commit has a pointer to, by name."""
    listed = git(workspace, "ls-tree", "-z", "--name-only", commit, f"{INCOMING}/").split("\0")
    paths = [path for path in listed if path.endswith(POINTER)]
    pointers = [parse_yaml(git(workspace, "show", f"{commit}:./{path}")) for path in paths]
    return {out["path"]: out["md5"] for pointer in pointers for out in pointer["outs"]}


def copy_whole(source: Path, target: Path, digest: str) -> bool:
    """Copy a batch, unless it is changing. Whether that was done; nothing is left where it was not.

    Args:
        digest: of what is to be copied.

    Raises:
        OSError: it cannot be read, or the disk takes no more.
    """
    try:
        if _is_stirring(source):
            time.sleep(QUIET_SECONDS)
        if _is_stirring(source):
            return False
        copy_batch(source, target)
        if dvc_digest(target) == digest == dvc_digest(source, hidden=False):
            return True
    except (FileNotFoundError, DataError):  # it is being taken away, or a link has come
        pass
    remove(target)
    return False


def copy_files(source: Path, target: Path) -> None:
    """Copy all files of a path that is no batch: those that DVC's digest is of. An error is that of one file."""
    for file in read_linked_files(source):
        copy = target / Path(file).relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_quarantine(root: Path) -> dict[str, Quarantined]:
    """The records of a main repository, by digest."""
    files = sorted((root / QUARANTINE).glob("[!.]*.json"))
    return {path.stem: Quarantined(**record) for path in files if (record := read_kept(path))}


def find_quarantined(root: Path, digests: Mapping[str, str]) -> list[Quarantined]:
    """Those of some batches, given by name and digest, that are not taken in."""
    records = read_quarantine(root)
    return [records[digest] for _, digest in sorted(digests.items()) if digest in records]


def quarantine(root: Path, name: str, digest: str, reason: str) -> Quarantined:
    """Record that the batch's content is not to be taken in."""
    record = Quarantined(name, digest, reason, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
    write_json(root / QUARANTINE / f"{digest}.json", asdict(record))
    return record


def release(root: Path, digest: str) -> None:
    """Forget that a content was bad: it has been taken in since."""
    (root / QUARANTINE / f"{digest}.json").unlink(missing_ok=True)


def _is_stirring(batch: Path) -> bool:
    files, now = read_files(batch), time.time()
    return not files or any(0 <= now - changed / 1e9 < QUIET_SECONDS for _, changed in files.values())


def _sign(files: Files) -> str:
    """The state of the files on the disk, without reading them."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()

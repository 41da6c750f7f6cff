"""Check of DVC's outputs and cache against `dvc.lock`, by content.

DVC trusts every read-only file in its cache, and every file that it has restored from there. It therefore restores a
damaged file without an error, and has no setting to change that.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.dvc import find_cache
from pipeline.dvc_yaml import read_stages
from pipeline.errors import WorkspaceError
from pipeline.files import file_digest, parse_yaml
from pipeline.tracking.stage_outputs import Outputs, dvc_digest

OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")  # names of files in the cache's directories, which are `00` to `ff`
POINTER = ".dvc"


def require_sound_inputs(workspace: Path, stage: str) -> None:
    """Refuse to let a stage read an output of another stage that is not the one in `dvc.lock`.

    Raises:
        WorkspaceError: it differs. Names the output, and the damaged object of DVC's cache if that is the cause.
    """
    outputs = Outputs(workspace).locked_outputs()
    for dependency in read_stages(workspace)[stage].deps:
        if dependency in outputs:
            _require_sound(workspace, dependency, outputs[dependency])


def require_sound_outputs(workspace: Path, stage: str) -> None:
    """Refuse outputs of a stage that are not those in `dvc.lock`, after DVC has restored them.

    Raises:
        WorkspaceError: one differs. Names the output, and the damaged object of DVC's cache.
    """
    for path, digest in Outputs(workspace).locked_outputs(stage).items():
        _require_sound(workspace, path, digest)


def require_sound_batches(workspace: Path, incoming: Path) -> None:
    """Refuse batches that come from a damaged object of DVC's cache. Edited batches are accepted here.

    Raises:
        WorkspaceError: one is damaged. Names the batch and the object.
    """
    for pointer in sorted((workspace / incoming).glob(f"*{POINTER}")):
        batch, digest = pointer.with_suffix(""), _read_pointer(pointer)
        if not batch.exists() or not digest or (found := dvc_digest(batch, hidden=False)) == digest:
            continue
        if damaged := _find_damaged(workspace, digest):
            raise _damage(str(batch.relative_to(workspace)), digest, found, damaged)


def find_objects(workspace: Path) -> list[Path]:
    """List the files in the workspace's DVC cache. Each is named by its MD5.

    Raises:
        WorkspaceError: DVC's settings cannot be read.
    """
    place = find_cache(workspace)
    found = place.glob("[0-9a-f][0-9a-f]/*") if place else ()
    return sorted(path for path in found if OBJECT.fullmatch(path.name))


def is_damaged(path: Path) -> bool:
    """Return True if the MD5 of an object in DVC's cache differs from its name."""
    return not f"{path.parent.name}{path.name}".startswith(file_digest(path, "md5"))


def _require_sound(workspace: Path, path: str, digest: str) -> None:
    here = workspace / path
    if here.exists() and digest != (found := dvc_digest(here)):
        raise _damage(path, digest, found, _find_damaged(workspace, digest))


def _damage(path: str, expected: str, found: str, damaged: list[Path]) -> WorkspaceError:
    paths = " ".join(map(str, damaged))
    return WorkspaceError(
        f"{path} is damaged" if damaged else f"{path} is not the one in dvc.lock",
        expected=f"MD5 {expected}",
        found=f"{found}" + (f", restored from a damaged object of DVC's cache: {paths}" if damaged else ""),
        remedy=f"rm -rf {paths} {path}; then dvc pull {path}, or pipeline run, which makes it again"
        if damaged
        else f"rm -rf {path}; dvc checkout {path}. To keep the change: dvc commit {path}",
    )


def _find_damaged(workspace: Path, digest: str) -> list[Path]:
    """Find the damaged cache objects of a file, or of a directory and its files."""
    cache = find_cache(workspace)
    if cache is None:
        return []
    objects = [cache / digest[:2] / digest[2:]]
    if digest.endswith(".dir"):
        objects += (cache / name[:2] / name[2:] for name in digests_in_directory(objects[0]))
    return [path for path in dict.fromkeys(objects) if path.is_file() and is_damaged(path)]


def digests_in_directory(path: Path) -> Iterator[str]:
    """Yield the MD5 of each file of a directory from its cache object. Nothing if that is damaged or missing."""
    try:
        yield from (entry["md5"] for entry in json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return


def _read_pointer(pointer: Path) -> str:
    """Read the MD5 from a pointer. Empty if the pointer is damaged; DVC reports that itself."""
    try:
        return str(parse_yaml(pointer.read_bytes())["outs"][0]["md5"])
    except (OSError, ValueError, TypeError, LookupError):
        return ""

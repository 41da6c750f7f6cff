"""DVC's outputs and cache compared with `dvc.lock` by content.

DVC trusts every cache file that is read-only, and whatever it has restored from one. A file that a disk or a program
damaged is therefore restored without an error, and no setting of DVC changes that.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.files import file_digest, parse_yaml
from pipeline.tracking.outputs import Outputs, dvc_digest

OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")  # names of files in the cache's directories, which are `00` to `ff`
POINTER = ".dvc"


def require_sound_inputs(workspace: Path, stage: str) -> None:
    """Refuse to let a stage read an output of another stage that is not the one in `dvc.lock`.

    Raises:
        WorkspaceError: naming the output, and the damaged object of DVC's cache if that is where it comes from.
    """
    definition = parse_yaml((workspace / "dvc.yaml").read_bytes())["stages"].get(stage, {})
    outputs = Outputs(workspace).locked_outputs()
    for dependency in definition.get("deps", ()):
        if dependency in outputs:
            _require_sound(workspace, dependency, outputs[dependency])


def require_sound_outputs(workspace: Path, stage: str) -> None:
    """Refuse outputs of a stage that are not those in `dvc.lock`, after DVC has restored them.

    Raises:
        WorkspaceError: naming the output, and the damaged object of DVC's cache.
    """
    for path, digest in Outputs(workspace).locked_outputs(stage).items():
        _require_sound(workspace, path, digest)


def require_sound_batches(workspace: Path, incoming: Path) -> None:
    """Refuse batches that come from a damaged object of DVC's cache. A batch that was edited is none of these.

    Raises:
        WorkspaceError: naming the batch and the object.
    """
    for pointer in sorted((workspace / incoming).glob(f"*{POINTER}")):
        batch, digest = pointer.with_suffix(""), _read_pointer(pointer)
        if not batch.exists() or not digest or (found := dvc_digest(batch, hidden=False)) == digest:
            continue
        if damaged := _find_damaged(workspace, digest):
            raise _damage(str(batch.relative_to(workspace)), digest, found, damaged)


def find_objects(workspace: Path) -> list[Path]:
    """The files in the cache of DVC that a workspace uses, each named by its MD5.

    Raises:
        WorkspaceError: DVC's settings cannot be read.
    """
    place = find_cache(workspace)
    found = place.glob("[0-9a-f][0-9a-f]/*") if place else ()
    return sorted(path for path in found if OBJECT.fullmatch(path.name))


def find_cache(workspace: Path) -> Path | None:
    """The directory of objects in DVC's cache. None: the workspace is not one of DVC's."""
    if not (workspace / ".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    asked = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise WorkspaceError("DVC's settings cannot be read", found=asked.stderr.strip(), remedy="dvc config --list")
    return workspace / asked.stdout.strip() / "files/md5"


def is_damaged(path: Path) -> bool:
    """Whether the content of an object of DVC's cache is not what its name says."""
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
        else f"rm -rf {path}; dvc checkout {path}. If the change is meant: dvc commit {path}",
    )


def _find_damaged(workspace: Path, digest: str) -> list[Path]:
    """The damaged ones of the objects that hold a file, or a directory and its files."""
    cache = find_cache(workspace)
    if cache is None:
        return []
    objects = [cache / digest[:2] / digest[2:]]
    if digest.endswith(".dir"):
        objects += (cache / name[:2] / name[2:] for name in _read_list(objects[0]))
    return [path for path in dict.fromkeys(objects) if path.is_file() and is_damaged(path)]


def _read_list(path: Path) -> Iterator[str]:
    """The MD5 of every file of a directory, from its object in the cache; of a damaged or missing list none."""
    try:
        yield from (entry["md5"] for entry in json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return


def _read_pointer(pointer: Path) -> str:
    """The MD5 in a pointer; empty if it is damaged, which DVC reports."""
    try:
        return str(parse_yaml(pointer.read_bytes())["outs"][0]["md5"])
    except (OSError, ValueError, TypeError, LookupError):
        return ""

"""Data for a temporary checkout (`pipeline.temporary_checkout`) that git does not hold."""

import shutil
from pathlib import Path

from pipeline.data.batches import POINTER, read_linked_files
from pipeline.dvc import run_in_checkout
from pipeline.files import parse_yaml
from pipeline.params import PARAMS_FILE
from pipeline.tracking.stage_outputs import dvc_digest


def restore(
    directory: Path, *targets: str, seconds: float | None = None, without: tuple[str, ...] = ()
) -> tuple[bool, list[str]]:
    """Restore outputs or batches of a checkout from DVC's cache, or else from a remote.

    Args:
        targets: stages, or pointers of batches.
        seconds: the time limit of a download; None sets no limit.
        without: prefixes of environment variables that DVC does not inherit.

    Returns:
        True if everything was restored, and the lines that the last DVC command printed.
    """
    code, lines = run_in_checkout(directory, "checkout", *targets, without=without)
    if code:
        code, lines = run_in_checkout(directory, "pull", *targets, seconds=seconds, without=without)
    return code == 0, lines


def dataset_path(directory: Path) -> Path:
    """Read `dataset.path` of a checkout, whose params may be those of an older version of this code."""
    return Path(parse_yaml((directory / PARAMS_FILE).read_bytes())["dataset"]["path"])


def dataset_pointer(directory: Path) -> Path:
    """Return the path of DVC's pointer to the files of `dataset.path`, relative to a checkout. It need not exist."""
    place = dataset_path(directory)
    return place.with_name(f"{place.name}{POINTER}")


def provide_dataset_files(workspace: Path, directory: Path, digest: str, *, without: tuple[str, ...] = ()) -> bool:
    """Provide the files of `dataset.path` in a checkout: by DVC if it tracks them, or else from a workspace.

    Args:
        digest: DVC's digest of the files that the checkout needs.
        without: prefixes of environment variables that DVC does not inherit.

    Returns:
        True if the checkout has these files now.
    """
    place = dataset_path(directory)
    source, target = workspace / place, directory / place
    pointer = dataset_pointer(directory)
    if not _has(target, digest) and (directory / pointer).exists():
        restore(directory, str(pointer), without=without)
    if not _has(target, digest) and source != target:
        copy_files(source, target)
    return _has(target, digest)


def copy_files(source: Path, target: Path) -> None:
    """Copy all files that DVC's digest of a directory covers. An error names one file."""
    for file in read_linked_files(source):
        copy = target / Path(file).relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _has(path: Path, digest: str) -> bool:
    return path.exists() and dvc_digest(path) == digest

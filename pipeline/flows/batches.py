"""Adding a batch of labelled images to `data/incoming/`: checked first, then copied, and known to DVC and git."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.features import Features
from pipeline.data.incoming import INCOMING, POINTER
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.errors import DataError, FlowError
from pipeline.files import atomic_directory, atomic_file
from pipeline.flows.git import git, require_repository
from pipeline.params import ValidateParams

if TYPE_CHECKING:
    from pipeline.data.inspection import Known

TABLES = Path("data/dataset")  # what the last `ingest` wrote


@dataclass(frozen=True)
class AddedBatch:
    """A batch that is in place, to be committed."""

    path: Path
    counts: dict[str, int]  # images by class name
    features: Features  # of its images
    changed: tuple[Path, ...]  # the files that git must have


def add_batch(
    source: Path, name: str | None, dataset: Dataset, thresholds: ValidateParams, known: "Known | None" = None
) -> AddedBatch:
    """Make the images at `source` a batch of the current workspace.

    Args:
        source: anything that `pipeline.data.incoming` reads, also something already in `data/incoming/`.
        name: of the batch; None takes the source's.
        dataset: what the images must fit.
        thresholds: what `validate` will hold them against.
        known: the images that they must not repeat; None takes those of the last `ingest`.

    Raises:
        DataError: the batch is malformed, its images are blank, repeated or the like, or its name is taken or no name
            for one. Nothing is left behind.
        FlowError: DVC or git refused. Nothing is left behind.
    """
    require_repository(Path())
    target = INCOMING / _file_name(source, name or source.name)
    in_place = target.exists() and target.resolve() == source.resolve()
    if target.exists() and not in_place:
        raise DataError(
            f"there is a batch {target.name} already",
            expected="a name of its own",
            found=str(target),
            remedy=f"pipeline add-data {shlex.quote(str(source))} --name ANOTHER",
        )
    from pipeline.data.inspection import inspect_batch, read_known  # Great Expectations takes seconds to import

    features = inspect_batch(source, target.name, dataset, known or read_known(TABLES, dataset), thresholds)
    images = np.bincount(features.label, minlength=len(dataset.classes)).tolist()
    counts = dict(zip(dataset.classes, images, strict=True))
    if in_place:
        return AddedBatch(target, counts, features, _track(target))
    _copy(source, target)
    with _undone_on_error(target):
        return AddedBatch(target, counts, features, _track(target))


def _file_name(source: Path, name: str) -> str:
    name = name if source.is_dir() or name.endswith(source.suffix) else name + source.suffix
    if Path(name).name != name or name.startswith(".") or name.endswith(POINTER) or name == OFFICIAL:
        raise DataError(
            f"{name!r} cannot be the name of a batch",
            expected=f"a plain file name: not hidden, no folders, not ending in {POINTER}, not {OFFICIAL!r}",
            remedy="choose one with --name",
        )
    return name


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        with atomic_directory(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    else:
        with atomic_file(target) as partial:
            shutil.copyfile(source, partial)


def _track(path: Path) -> tuple[Path, ...]:
    remedy = "mend that, and add it again"
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "add", "--quiet", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FlowError(f"DVC cannot add {path}", found=(result.stderr or result.stdout).strip(), remedy=remedy)
    changed = (path.with_name(path.name + POINTER), path.parent / ".gitignore")
    try:
        git(Path(), "add", *map(str, changed))
    except FlowError as error:
        raise FlowError(f"git cannot add {changed[0]}", found=error.found, remedy=remedy) from None
    return changed


@contextmanager
def _undone_on_error(path: Path) -> Iterator[None]:
    """Remove a copied batch that could not be added: `ingest` refuses to work beside one without a pointer."""
    ignored = path.with_name(".gitignore")  # DVC adds the batch's name
    before = ignored.read_bytes() if ignored.exists() else None
    try:
        yield
    except BaseException:
        path.with_name(path.name + POINTER).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        ignored.unlink(missing_ok=True) if before is None else ignored.write_bytes(before)
        raise

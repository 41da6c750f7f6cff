"""Add a batch of labelled images to `data/incoming/`: copy and check it, and add it to DVC and git."""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.batches.incoming import remove
from pipeline.batches.new_classes import NewClasses
from pipeline.data.batch_formats import FORMATS, UnknownClass
from pipeline.data.batches import INCOMING, POINTER, as_batch_error, copy_batch, find_hidden, refuse_links
from pipeline.data.features import Features
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.dvc import add
from pipeline.errors import DataError, FlowError
from pipeline.files import parse_yaml
from pipeline.git import git, require_repository
from pipeline.params import ValidateParams
from pipeline.tracking.stage_outputs import dvc_digest

if TYPE_CHECKING:
    from pipeline.batches.inspection import Known

TABLES = Path("data/dataset")  # written by the last `ingest`


@dataclass(frozen=True)
class AddedBatch:
    """A batch in `data/incoming/` that is ready to commit."""

    path: Path
    counts: dict[str, int]  # images by class name
    features: Features  # of its images
    changed: tuple[Path, ...]  # the files to commit to git
    left_out: tuple[str, ...]  # hidden files and folders, which are not part of the batch


def add_batch(
    source: Path,
    name: str | None,
    dataset: Dataset,
    thresholds: ValidateParams,
    known: "Known | None" = None,
    new: NewClasses | None = None,
) -> AddedBatch:
    """Add the images at `source` to the current workspace as a batch.

    Args:
        source: anything that `pipeline.data.batches` reads. It may already be in `data/incoming/`.
        name: the batch's name; None takes the source's.
        dataset: the dataset whose shape and classes the images must have.
        thresholds: those of `validate` for the dataset, from `resolve_thresholds`.
        known: the images that the batch must not repeat; None takes those of the last `ingest`.
        new: the classes that the batch adds to the dataset, which are in `dataset` already.

    Raises:
        DataError: the batch is malformed, its images fail a check (such as blank or repeated ones), or its name is in
            use or invalid. Nothing is left behind.
        FlowError: DVC or git failed. Nothing is left behind.
    """
    require_repository(Path())
    target = INCOMING / _file_name(source, name or source.name)
    in_place = target.exists() and target.resolve() == source.resolve()
    if target.exists() and not in_place:
        raise DataError(
            f"batch {target.name} exists already",
            expected="an unused name",
            found=str(target),
            remedy=f"pipeline add-data {shlex.quote(str(source))} --name ANOTHER",
        )
    if in_place:
        source = target
        refuse_links(target)
    with nullcontext(target) if in_place else _copied(source, target) as path:
        digest = dvc_digest(path, hidden=False)
        features = _inspect(path, source, dataset, known, thresholds)  # of the copy, because the source may change
        counts = _count(features, dataset)
        if new:
            new.require_images(counts, source)
        entries = [new.file] if new else []
        with _undone_on_error(target, entries, keep=in_place):
            path.rename(target)
            if new:
                new.write()
            changed = _track(target, digest, entries)
            return AddedBatch(target, counts, features, changed, find_hidden(source))


def _file_name(source: Path, name: str) -> str:
    name = name if source.is_dir() or name.endswith(source.suffix) else name + source.suffix
    if Path(name).name != name or name.startswith(".") or name.endswith(POINTER) or name == OFFICIAL:
        raise DataError(
            f"{name!r} cannot be the name of a batch",
            expected=f"a plain file name: not hidden, no folders, not ending in {POINTER}, not {OFFICIAL!r}",
            remedy="choose one with --name",
        )
    return name


@contextmanager
def _copied(source: Path, target: Path) -> Iterator[Path]:
    """Copy a batch to a temporary folder next to its target. The folder is removed afterwards."""
    scratch, is_first = target.with_name(f".{target.name}.partial"), not target.parent.exists()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if not source.exists():
            raise as_batch_error(source, DataError(f"{source} does not exist", expected=FORMATS))
        refuse_links(source)
        copy_batch(source, scratch / target.name)
        yield scratch / target.name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if is_first:
            with suppress(OSError):  # not empty: the batch was added
                target.parent.rmdir()


def _inspect(path: Path, source: Path, dataset: Dataset, known: "Known | None", thresholds: ValidateParams) -> Features:
    """Check a batch or its copy. Errors name its files relative to the batch's parent folder."""
    from pipeline.batches.inspection import inspect_batch, read_known

    known = known or read_known(TABLES, dataset)
    try:
        return inspect_batch(path, path.name, dataset, known, thresholds)
    except DataError as error:
        problem, found = (text.replace(f"{path.parent}/", "") for text in (error.problem, error.found))
        remedy = error.remedy if path == source else f"correct {source}"
        if isinstance(error.__cause__, UnknownClass):
            remedy += "; if it is a new class, add it with --new-class NAME"
        raise DataError(problem, expected=error.expected, found=found, remedy=remedy) from None


def _count(features: Features, dataset: Dataset) -> dict[str, int]:
    images = np.bincount(features.label, minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, images, strict=True))


def _require_digest(path: Path, digest: str) -> None:
    """Refuse a batch if the content that DVC added is not the content that was checked."""
    pointer = parse_yaml(path.with_name(path.name + POINTER).read_bytes())
    if pointer["outs"][0]["md5"] != digest:
        raise DataError(
            f"batch {path.name} changed while it was checked",
            expected="no change during the check",
            remedy="run the same command again when nothing writes to it",
        )


def _track(path: Path, digest: str, entries: Sequence[Path]) -> tuple[Path, ...]:
    """Add a checked batch to DVC and git, and changed catalogue entries to git. Returns the files to commit."""
    remedy = "correct that, and add it again"
    add(path, remedy=remedy)
    _require_digest(path, digest)
    changed = (path.with_name(path.name + POINTER), path.parent / ".gitignore", *entries)
    try:
        git(Path(), "add", *map(str, changed))
    except FlowError as error:
        raise FlowError(f"git cannot add {changed[0]}", found=error.found, remedy=remedy) from None
    return changed


@contextmanager
def _undone_on_error(path: Path, entries: Sequence[Path], *, keep: bool) -> Iterator[None]:
    """Undo a failed addition: `ingest` refuses to run if a batch has no pointer.

    Args:
        entries: files of the catalogue that the addition changes.
        keep: keep the batch, because it was there before, and restore only its pointer and `.gitignore`.
    """
    # DVC adds the batch's name to the first two.
    changed = [path.with_name(path.name + POINTER), path.with_name(".gitignore"), *entries]
    before = {file: file.read_bytes() if file.exists() else None for file in changed}
    try:
        yield
    except BaseException:
        if not keep:
            remove(path)
        for file, content in before.items():
            file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
        raise

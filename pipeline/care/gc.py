"""Garbage collection: find and measure unneeded data in all stores, then delete it.

`pipeline.care.retention` selects the runs and models to delete. DVC's cache keeps the objects that the workspace, its
branches, tags and experiments, or the commits and data of the remaining runs refer to: a checkout, a rollback and
`pipeline reproduce` need them. All other objects are deleted. Prefect's own vacuum deletes old Prefect history.

All locks of the repository are held, so no other command runs. An interrupted deletion can be repeated, because
references are deleted before the objects that they refer to.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.care.backup import SCRATCH
from pipeline.care.exclusive_access import exclusive_access
from pipeline.care.prefect_database import OldHistory, count_old, delete_old
from pipeline.care.retention import Retention, delete, review
from pipeline.dvc import find_used_objects
from pipeline.files import parse_yaml
from pipeline.git import git_or_none
from pipeline.temporary_checkout import REPRODUCTIONS, RETRAININGS
from pipeline.tracking.dvc_integrity import digests_in_directory
from pipeline.tracking.store import locate_unserved, open_store
from pipeline.workspace import STATE, main_repository

REPORTS = STATE / "retraining"  # in the main repository: a directory for each report of a retraining
# Checkpoints, results of the trainings of sweeps with their checkpoints, and copies kept by restores and upgrades.
AGING = ("checkpoints/*", "trainings/*", "replaced-*", "*-*Z.db")
DELETED = ".going"  # suffix of a directory whose deletion has begun
DAY = 86_400  # seconds


@dataclass(frozen=True)
class Leftover:
    """File or directory to delete."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """Unneeded data, by store."""

    retention: Retention
    cached_runs: tuple[Leftover, ...]  # entries of DVC's run-cache whose outputs are deleted
    objects: tuple[Leftover, ...]  # of DVC's cache, lists of directories first
    prefect: OldHistory
    files: tuple[Leftover, ...]  # below `.pipeline/`

    @property
    def is_empty(self) -> bool:
        retention = self.retention
        return not (
            retention.runs or retention.models or self.cached_runs or self.objects or self.files or self.prefect
        )


@contextmanager
def review_all(workspace: Path, *, keep_runs: int, days: int) -> Iterator[Garbage]:
    """Find unneeded data and yield it to a block that holds all locks. Deletes nothing.

    Args:
        keep_runs: number of the newest trainings, flow runs and reports of retrainings to keep in any case.
        days: minimum age of deleted Prefect history, checkpoints and safety copies.

    Raises:
        WorkspaceError: another command is running here.
        TrackingError: the store cannot be used, or is behind a server.
        FlowError: DVC or Prefect cannot list its data.
    """
    with exclusive_access(workspace, with_servers=False):
        store, root = locate_unserved(workspace), main_repository(workspace)
        retention = review(store, open_store(store), workspace, keep_runs)
        cached_runs, objects = _find_unused(workspace, retention)
        files = tuple(_find_leftovers(root, keep_runs, time.time() - days * DAY))
        yield Garbage(retention, cached_runs, objects, asyncio.run(count_old(root, days)), files)


def delete_all(garbage: Garbage) -> None:
    """Delete the data found by `review_all`, inside its block.

    Raises:
        TrackingError, FlowError: a store cannot be used. The next run continues the deletion.
    """
    delete(garbage.retention)
    for leftover in (*garbage.cached_runs, *garbage.objects, *garbage.files):
        _remove(leftover.path)
    if garbage.prefect:
        asyncio.run(delete_old(garbage.prefect))


def _find_unused(workspace: Path, retention: Retention) -> tuple[tuple[Leftover, ...], tuple[Leftover, ...]]:
    """Find the unused entries of DVC's run-cache and the unused objects of its cache."""
    commits = [
        commit
        for commit in sorted(retention.commits)
        if git_or_none(workspace, "cat-file", "-e", f"{commit}^{{commit}}") is not None
    ]
    used, cache, runs = find_used_objects(workspace, commits)
    if not cache.is_relative_to(main_repository(workspace)):  # other projects may share this cache
        return (), ()
    needed = used | retention.data
    lists = [cache / digest[:2] / digest[2:] for digest in needed if digest.endswith(".dir")]
    needed.update(digest for path in lists for digest in digests_in_directory(path))
    objects = [
        Leftover(path, path.stat().st_size)
        for path in sorted(cache.glob("[0-9a-f][0-9a-f]/*"))
        if path.parent.name + path.name not in needed and path.is_file()
    ]
    deleted = {leftover.path.parent.name + leftover.path.name for leftover in objects}
    cached = tuple(Leftover(path, _size(path)) for path in _find_broken(runs, deleted))
    return cached, tuple(sorted(objects, key=lambda leftover: leftover.path.suffix != ".dir"))


def _find_broken(runs: Path, deleted: Collection[str]) -> Iterator[Path]:
    """Yield the entries of DVC's run-cache whose outputs are deleted.

    A directory holds the entries of one input. If all are broken, yield the directory: DVC fails on an empty one.
    """
    for directory in sorted(runs.glob("??/*")):
        entries = sorted(path for path in directory.iterdir() if path.is_file())
        broken = [path for path in entries if not _outputs(path).isdisjoint(deleted)]
        if len(broken) == len(entries) or directory.suffix == DELETED:
            yield directory
        else:
            yield from broken


def _outputs(entry: Path) -> set[str]:
    """Read the digests of the outputs of a run-cache entry."""
    content: dict[str, Any] = parse_yaml(entry.read_bytes()) or {}
    return {out["md5"] for out in content.get("outs", []) if "md5" in out}


def _find_leftovers(root: Path, keep_runs: int, before: float) -> Iterator[Leftover]:
    """Find unneeded files in `.pipeline/`.

    These are old unused checkpoints and results of trainings, old safety copies, all but the newest reports of
    retrainings, and checkouts and copies left by killed processes.
    """
    dated = [path for pattern in AGING for path in sorted((root / STATE).glob(pattern))]
    reports = sorted(path for path in (root / REPORTS).glob("*") if path.is_dir())  # sorted by the time in their names
    abandoned = [path for place in (REPRODUCTIONS, RETRAININGS) for path in sorted((root / place).glob("*"))]
    abandoned += (root / STATE).glob(SCRATCH)
    old = [path for path in dated if path.stat().st_mtime < before]
    for path in (*old, *reports[: len(reports) - keep_runs if keep_runs < len(reports) else 0], *abandoned):
        yield Leftover(path, _size(path))


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(_size(Path(entry.path)) for entry in os.scandir(path) if not entry.is_symlink())


def _remove(path: Path) -> None:
    if path.is_dir():
        renamed = path.with_suffix(DELETED)  # so that no process finds half a directory
        if path != renamed:
            shutil.rmtree(renamed, ignore_errors=True)
            path.rename(renamed)
        shutil.rmtree(renamed)
        return
    with contextlib.suppress(FileNotFoundError):
        path.chmod(0o644)  # DVC makes cached files read-only
        path.unlink()


def total(leftovers: Collection[Leftover]) -> int:
    """Sum up the sizes in bytes."""
    return sum(leftover.bytes for leftover in leftovers)

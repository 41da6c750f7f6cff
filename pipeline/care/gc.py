"""What months of runs leave behind and nothing needs any more: found and measured first, deleted only then.

The record decides (`pipeline.care.retention`). DVC keeps what the workspace, its branches, tags and experiments,
and the commits and data of the runs that stay refer to: that is what a checkout, a rollback and `pipeline reproduce`
need. Everything else in its cache goes. Of Prefect's database old history goes, by Prefect's own vacuum.

All locks of the repository are held meanwhile, so nothing runs. Every deletion can be cut off and done again: what
refers to something goes before what it refers to.
"""

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.care.backup import SCRATCH
from pipeline.care.exclusive_access import alone
from pipeline.care.prefect_database import Unwanted, count_old, delete_old
from pipeline.care.retention import Retention, delete, review
from pipeline.checkout import PLACE, RETRAININGS
from pipeline.errors import FlowError
from pipeline.files import parse_yaml
from pipeline.git import git_or_none
from pipeline.retraining.run import HISTORY
from pipeline.tracking.store import locate_unserved, open_store
from pipeline.workspace import STATE, main_repository

AGING = ("checkpoints/*", "replaced-*", "*-*Z.db")  # checkpoints, and what restores and upgrades put aside
GOING = ".going"  # ends the name of a directory that is being deleted
DAY = 86_400  # seconds


@dataclass(frozen=True)
class Leftover:
    """A file or a directory."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What nothing needs, by where it is."""

    retention: Retention
    cached_runs: tuple[Leftover, ...]  # of DVC's run-cache, whose outputs go
    objects: tuple[Leftover, ...]  # of DVC's cache, directories' lists first
    prefect: Unwanted
    files: tuple[Leftover, ...]  # below `.pipeline/`

    @property
    def is_empty(self) -> bool:
        retention = self.retention
        return not (
            retention.runs or retention.models or self.cached_runs or self.objects or self.files or self.prefect
        )


@contextmanager
def review_all(workspace: Path, *, keep_runs: int, days: int) -> Iterator[Garbage]:
    """What can go, in a block in which nothing else runs here. Deletes nothing.

    Args:
        keep_runs: how many of the newest trainings, flow runs and reports of retrainings stay in any case.
        days: how old Prefect's history, checkpoints and safety copies must be.

    Raises:
        WorkspaceError: something is running here.
        TrackingError: the store cannot be used, or is a server's.
        FlowError: DVC or Prefect cannot tell what is there.
    """
    with alone(workspace, beside_servers=True):
        store, root = locate_unserved(workspace), main_repository(workspace)
        retention = review(store, open_store(store), workspace, keep_runs)
        cached_runs, objects = _find_unused(workspace, retention)
        files = tuple(_find_leftovers(root, keep_runs, time.time() - days * DAY))
        yield Garbage(retention, cached_runs, objects, asyncio.run(count_old(root, days)), files)


def delete_all(garbage: Garbage) -> None:
    """Delete what a review found, in its block.

    Raises:
        TrackingError, FlowError: a store cannot be used. Run again, it goes on where it stopped.
    """
    delete(garbage.retention)
    for leftover in (*garbage.cached_runs, *garbage.objects, *garbage.files):
        _remove(leftover.path)
    if garbage.prefect:
        asyncio.run(delete_old(garbage.prefect))


def _find_unused(workspace: Path, retention: Retention) -> tuple[tuple[Leftover, ...], tuple[Leftover, ...]]:
    """Entries of DVC's run-cache and objects of its cache that nothing refers to."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    commits = [
        commit
        for commit in sorted(retention.commits)
        if git_or_none(workspace, "cat-file", "-e", f"{commit}^{{commit}}") is not None
    ]
    try:
        with Repo(str(workspace)) as repo, repo.lock:
            # Forced: a directory whose list is not in the cache, as another machine made it, is no error.
            used = repo.used_objs(
                all_branches=True, all_tags=True, all_experiments=True, revs=commits or None, force=True
            )
            cache, runs = Path(repo.cache.local.path), Path(repo.cache.local_cache_dir) / "runs"
    except DvcException as error:
        raise FlowError(
            "DVC cannot tell what is needed", found=str(error), remedy="mend it, or remove that branch or tag"
        ) from None
    if not cache.is_relative_to(main_repository(workspace)):  # other projects may need what this one does not
        return (), ()
    needed = {info.value for infos in used.values() for info in infos} | retention.data
    needed |= {entry["md5"] for name in needed if name.endswith(".dir") for entry in _read_list(_object(cache, name))}
    objects = [
        Leftover(path, path.stat().st_size)
        for path in sorted(cache.glob("[0-9a-f][0-9a-f]/*"))
        if path.parent.name + path.name not in needed and path.is_file()
    ]
    gone = {leftover.path.parent.name + leftover.path.name for leftover in objects}
    cached = tuple(Leftover(path, _size(path)) for path in _find_broken(runs, gone))
    return cached, tuple(sorted(objects, key=lambda leftover: leftover.path.suffix != ".dir"))


def _find_broken(runs: Path, gone: Collection[str]) -> Iterator[Path]:
    """What of DVC's run-cache would bring back something that is gone.

    A directory of it holds the entries of one input, and goes as a whole with the last: DVC fails on an empty one.
    """
    for directory in sorted(runs.glob("??/*")):
        entries = sorted(path for path in directory.iterdir() if path.is_file())
        broken = [path for path in entries if not _outputs(path).isdisjoint(gone)]
        if len(broken) == len(entries) or directory.suffix == GOING:
            yield directory
        else:
            yield from broken


def _object(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]


def _read_list(path: Path) -> list[dict[str, str]]:
    """The files of a directory in DVC's cache; none where the list is not in it."""
    try:
        return list(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return []


def _outputs(entry: Path) -> set[str]:
    """The digests of what an entry of the run-cache would bring back."""
    content: dict[str, Any] = parse_yaml(entry.read_bytes()) or {}
    return {out["md5"] for out in content.get("outs", []) if "md5" in out}


def _find_leftovers(root: Path, keep_runs: int, before: float) -> Iterator[Leftover]:
    """Below `.pipeline/`: old checkpoints, which no training went on from, and old safety copies; all reports of
    retrainings but the newest; and what killed processes left of their checkouts and backups.
    """
    dated = [path for pattern in AGING for path in sorted((root / STATE).glob(pattern))]
    reports = sorted(path for path in (root / HISTORY).glob("*") if path.is_dir())  # named by their time
    abandoned = [path for place in (PLACE, RETRAININGS) for path in sorted((root / place).glob("*"))]
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
        going = path.with_suffix(GOING)  # at once, under a name that nobody asks for
        if path != going:
            shutil.rmtree(going, ignore_errors=True)
            path.rename(going)
        shutil.rmtree(going)
        return
    with contextlib.suppress(FileNotFoundError):
        path.chmod(0o644)  # DVC protects what it links into the workspace
        path.unlink()


def total(leftovers: Collection[Leftover]) -> int:
    """Bytes of all of them."""
    return sum(leftover.bytes for leftover in leftovers)

"""A commit of the past in a directory of its own, for as long as a block takes.

It borrows the objects of git and the cache of DVC, and is a repository by itself otherwise: nothing is entered in the
one it came from, neither a branch nor a worktree. Of a reproduction, the stages that run in it find their locks,
checkpoints, batches and MLflow store there, and never the reader's; those of a retraining record for the repository
that it works for.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import FlowError
from pipeline.git import git
from pipeline.workspace import OWNER, STATE, lock, main_repository

# In the main repository: on the disk of DVC's cache, and known to no tool.
PLACE = STATE / "reproductions"
RETRAININGS = STATE / "retrainings"
REMOVE_SECONDS = 10  # for a stage whose parent was killed to end, and to write no more


@contextmanager
def checkout(workspace: Path, commit: str, diff: bytes = b"", *, place: Path = PLACE) -> Iterator[Path]:
    """Yield the project's root in a new directory that holds a commit, with a diff applied to it.

    What a killed process left of such a directory is removed first, and this one at the end.

    Args:
        commit: its SHA-1. No branch needs to lead to it.
        diff: what `pipeline.tracking.provenance.read_tree` found; empty for none.
        place: where, below the main repository. What runs in RETRAININGS records for the main repository.

    Raises:
        WorkspaceError: another process has one at that place.
        FlowError: this repository has no such commit, or the diff does not fit it.
    """
    root = main_repository(workspace)
    with lock(place.name, wait=0, remedy="wait for it, or end that process", root=root):
        remove_left_behind(root, place)
        (root / place).mkdir(parents=True, exist_ok=True)
        top = Path(tempfile.mkdtemp(dir=root / place))
        try:
            _take_commit(workspace, commit, top)
            if diff:
                git(top, "apply", "--binary", "--whitespace=nowarn", "-", stdin=diff)
            project = top / git(workspace, "rev-parse", "--show-prefix")
            _lend_cache(workspace, project)
            if place == RETRAININGS:
                (project / OWNER).parent.mkdir(exist_ok=True)
                (project / OWNER).write_text(str(root), encoding="utf-8")
            yield project
        finally:
            _remove(top)


def remove_left_behind(root: Path, place: Path) -> None:
    """Remove what killed processes left of their checkouts. To be called only where none can be at work there."""
    for directory in (root / place).glob("*"):
        _remove(directory)


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + REMOVE_SECONDS
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists() or time.monotonic() > deadline:
            break
        time.sleep(0.2)


def _take_commit(workspace: Path, commit: str, directory: Path) -> None:
    try:
        git(workspace, "cat-file", "-e", f"{commit}^{{commit}}")
    except FlowError as error:
        raise FlowError(
            f"commit {commit} is not in this repository",
            found=error.found,
            remedy="git fetch it from where it was made; one that was never pushed is there only",
        ) from None
    objects = (workspace / git(workspace, "rev-parse", "--git-path", "objects")).resolve()
    git(directory, "init", "--quiet", "--template=")
    information = directory / ".git/objects/info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "alternates").write_bytes(os.fsencode(objects) + b"\n")
    git(directory, "checkout", "--quiet", "--detach", commit)


def _lend_cache(workspace: Path, directory: Path) -> None:
    """Let DVC find in `directory` what it finds in the workspace: its cache and its remotes, with their passwords."""
    from dvc.config import Config, ConfigError

    try:
        settings = Config(workspace / ".dvc").read()  # paths in it are absolute
        with Config(directory / ".dvc").edit("local") as local:
            local["remote"] = settings["remote"]
            local["cache"] = {"dir": str(workspace / ".dvc/cache"), **settings["cache"]}
            local["core"] = {name: value for name, value in settings["core"].items() if name == "remote"}
    except ConfigError as error:
        raise FlowError("DVC's settings cannot be read", found=str(error), remedy="dvc config --list") from None

"""Temporary checkouts of a commit, for reproductions and retrainings.

A checkout is a separate git repository that borrows git's objects and DVC's cache. It adds no branch and no worktree to
the original repository. The stages of a reproduction use the locks, checkpoints, batches and MLflow store of the
checkout, never the user's. Those of a retraining record in the main repository.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.dvc import share_cache
from pipeline.errors import FlowError
from pipeline.git import git
from pipeline.workspace import OWNER, STATE, lock, main_repository

# In the main repository, on the same disk as DVC's cache. No tool registers these directories.
REPRODUCTIONS = STATE / "reproductions"
RETRAININGS = STATE / "retrainings"
REMOVE_SECONDS = 10  # a stage whose parent was killed may write until it ends


@contextmanager
def checkout(workspace: Path, commit: str, diff: bytes = b"", *, parent: Path = REPRODUCTIONS) -> Iterator[Path]:
    """Yield the project's root in a new directory that contains a commit, with a diff applied.

    Directories that killed processes left are removed first, and this one at the end.

    Args:
        commit: its SHA-1. No branch needs to contain it.
        diff: the diff that `pipeline.tracking.provenance.read_tree` returned; empty for none.
        parent: the parent directory, relative to the main repository. Runs in RETRAININGS are recorded in the main
            repository.

    Raises:
        WorkspaceError: another process uses that place.
        FlowError: this repository does not have the commit, or the diff does not apply to it.
    """
    root = main_repository(workspace)
    with lock(parent.name, wait=0, remedy="wait for it, or end that process", root=root):
        remove_stale_checkouts(root, parent)
        (root / parent).mkdir(parents=True, exist_ok=True)
        top = Path(tempfile.mkdtemp(dir=root / parent))
        try:
            _check_out(workspace, commit, top)
            if diff:
                git(top, "apply", "--binary", "--whitespace=nowarn", "-", stdin=diff)
            project = top / git(workspace, "rev-parse", "--show-prefix")
            share_cache(workspace, project)
            if parent == RETRAININGS:
                (project / OWNER).parent.mkdir(exist_ok=True)
                (project / OWNER).write_text(str(root), encoding="utf-8")
            yield project
        finally:
            _remove(top)


def remove_stale_checkouts(root: Path, parent: Path) -> None:
    """Remove the checkouts that killed processes left. Call it only while no other process can use that directory."""
    for directory in (root / parent).glob("*"):
        _remove(directory)


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + REMOVE_SECONDS
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists() or time.monotonic() > deadline:
            break
        time.sleep(0.2)


def _check_out(workspace: Path, commit: str, directory: Path) -> None:
    try:
        git(workspace, "cat-file", "-e", f"{commit}^{{commit}}")
    except FlowError as error:
        raise FlowError(
            f"commit {commit} is not in this repository",
            found=error.found,
            remedy="git fetch it from the repository where it was made; an unpushed commit is only there",
        ) from None
    objects = (workspace / git(workspace, "rev-parse", "--git-path", "objects")).resolve()
    git(directory, "init", "--quiet", "--template=")
    information = directory / ".git/objects/info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "alternates").write_bytes(os.fsencode(objects) + b"\n")
    git(directory, "checkout", "--quiet", "--detach", commit)

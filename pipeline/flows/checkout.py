"""A commit of the past in a directory of its own, for as long as a block takes.

It borrows the objects of git and the cache of DVC, and is a repository by itself otherwise: nothing is entered in the
one it came from, neither a branch nor a worktree, and the stages that run in it find their locks, checkpoints, batches
and MLflow store there, and never the reader's.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import FlowError
from pipeline.workspace import STATE, lock, main_repository

PLACE = STATE / "reproductions"  # in the main repository: on the disk of DVC's cache, and known to no tool


@contextmanager
def checkout(workspace: Path, commit: str, diff: bytes) -> Iterator[Path]:
    """Yield the project's root in a new directory that holds a commit, with a diff applied to it.

    What a killed process left of such a directory is removed first, and this one at the end.

    Args:
        commit: its SHA-1. No branch needs to lead to it.
        diff: what `pipeline.tracking.lineage.read_tree` found; empty for none.

    Raises:
        WorkspaceError: another process has one.
        FlowError: this repository has no such commit, or the diff does not fit it.
    """
    root = main_repository(workspace)
    with lock("reproductions", wait=0, remedy="wait for it, or end that process", root=root):
        for left_behind in (root / PLACE).glob("*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        (root / PLACE).mkdir(parents=True, exist_ok=True)
        top = Path(tempfile.mkdtemp(dir=root / PLACE))
        try:
            _take_commit(workspace, commit, top)
            if diff:
                _git(top, "apply", "--binary", "--whitespace=nowarn", "-", stdin=diff)
            project = top / _git(workspace, "rev-parse", "--show-prefix")
            _lend_cache(workspace, project)
            yield project
        finally:
            shutil.rmtree(top, ignore_errors=True)


def _take_commit(workspace: Path, commit: str, directory: Path) -> None:
    try:
        _git(workspace, "cat-file", "-e", f"{commit}^{{commit}}")
    except FlowError as error:
        raise FlowError(
            f"commit {commit} is not in this repository",
            found=error.found,
            remedy="git fetch it from where it was made; one that was never pushed is there only",
        ) from None
    objects = (workspace / _git(workspace, "rev-parse", "--git-path", "objects")).resolve()
    _git(directory, "init", "--quiet", "--template=")
    information = directory / ".git/objects/info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "alternates").write_bytes(os.fsencode(objects) + b"\n")
    _git(directory, "checkout", "--quiet", "--detach", commit)


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


def _git(directory: Path, *arguments: str, stdin: bytes | None = None) -> str:
    command = ["git", "-c", "core.hooksPath=/dev/null", "-C", str(directory), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise FlowError(f"git {arguments[0]} failed", found=os.fsdecode(done.stderr).strip())
    return os.fsdecode(done.stdout).rstrip("\n")

"""Where this checkout is, which repository it belongs to, and the locks that keep two processes apart.

A workspace is the directory a stage runs in: the repository itself, a git worktree, or the temporary copy that
`dvc exp run --temp` makes. The tracking store, the checkpoints and the uncommitted data live in the main repository.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pipeline.errors import WorkspaceError

STATE = Path(".pipeline")  # locks, checkpoints and settings of this checkout: in .gitignore, no output of DVC
OWNER = STATE / "owner"  # in the checkout of a retraining: the path of the repository that it works for


def find_workspace(start: Path | None = None) -> Path:
    """The nearest directory at or above `start` (default: the current one) that holds a `dvc.yaml`.

    Raises:
        WorkspaceError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for directory in (start, *start.parents):
        if (directory / "dvc.yaml").is_file():
            return directory
    raise WorkspaceError(
        "this is not a pipeline checkout",
        expected="dvc.yaml here or in a directory above",
        found=f"none at or above {start}",
        remedy="change into the clone and run the command again",
    )


def main_repository(workspace: Path | None = None) -> Path:
    """The repository a workspace belongs to: itself, unless it is a worktree, a temporary copy or a retraining's.

    `dvc exp run --temp` names it in `DVC_ROOT`; a worktree's `.git` file leads to it.
    """
    root = Path(os.environ.get("DVC_ROOT") or workspace or find_workspace()).resolve()
    if (root / OWNER).is_file():
        return Path((root / OWNER).read_text(encoding="utf-8"))
    git = root / ".git"
    if not git.is_file():
        return root
    git_directory = (root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
    common = git_directory / "commondir"
    if not common.is_file():  # a submodule, not a worktree
        return root
    return (git_directory / common.read_text(encoding="utf-8").strip()).resolve().parent


def current_experiment() -> str | None:
    """The name of the DVC experiment that this process is part of; None outside of `dvc exp run`.

    `dvc exp run` sets both variables for its stages. The name alone may come from a user's shell.
    """
    return os.environ.get("DVC_EXP_NAME") if "DVC_EXP_BASELINE_REV" in os.environ else None


def make_state(root: Path | None = None) -> Path:
    """The directory STATE of the workspace `root` (default: the current directory), which only its owner may enter."""
    state = (root or Path()) / STATE
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's
        if state.stat().st_mode & 0o077:
            state.chmod(0o700)
    return state


@contextmanager
def lock(name: str, *, wait: float, remedy: str, root: Path | None = None) -> Iterator[None]:
    """Hold the lock `name` of the workspace `root` (default: the current directory).

    The operating system frees it when its process ends, however that happens.

    Args:
        name: what the lock guards, for the message: "stage train".
        wait: seconds to wait for another holder; negative waits for ever.
        remedy: what the reader should do when it stays taken.

    Raises:
        WorkspaceError: another process held the lock all the while.
    """
    stem = _stem(name, root)
    make_state(root)
    stem.parent.mkdir(exist_ok=True)
    holder = stem.with_suffix(".json")
    try:
        held = filelock.FileLock(stem.with_suffix(".lock"), timeout=wait)
        held.acquire()
    except filelock.Timeout:
        raise WorkspaceError(
            f"another process holds the lock of {name}", found=_describe(holder), remedy=remedy
        ) from None
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def is_held(name: str, by: int, *, root: Path) -> bool:
    """Whether a process holds the lock `name` of the workspace `root` now, and not another one with its number.

    Args:
        by: the process's number.
    """
    stem = _stem(name, root)
    try:
        if json.loads(stem.with_suffix(".json").read_text())["pid"] != by:
            return False
        with stem.with_suffix(".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who asks at the same time is no holder
        return False  # it ended without a word
    except BlockingIOError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stem(name: str, root: Path | None) -> Path:
    return (root or Path()) / STATE / "locks" / name.replace(" ", "-")


def _describe(holder: Path) -> str:
    try:
        content = json.loads(holder.read_text())
        return f"process {content['pid']}, since {content['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has just started"

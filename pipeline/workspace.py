"""The workspace, its main repository, its state directory and the locks between processes.

A workspace is the directory that a stage runs in: the repository itself, a git worktree, or the temporary copy that
`dvc exp run --temp` makes. The tracking store, the checkpoints and the uncommitted data live in the main repository.
"""

import fcntl
import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pipeline.errors import WorkspaceError

STATE = Path(".pipeline")  # locks, checkpoints and settings of this checkout: in .gitignore, not a DVC output
PROJECT_FILE = Path(__file__).parents[1] / "pyproject.toml"
OWNER = STATE / "owner"  # in the checkout of a retraining: the path of its main repository


def find_workspace(start: Path | None = None) -> Path:
    """Return the nearest directory at or above `start` (default: the current one) that contains a `dvc.yaml`.

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


def project_name() -> str:
    """Return the name of this project, which `pyproject.toml` defines."""
    return str(tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8"))["project"]["name"])


def describe_project() -> str:
    """Return the name and the version of this project, which `pyproject.toml` defines: `parts 0.1.0`."""
    project = tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8"))["project"]
    return f"{project['name']} {project['version']}"


def main_repository(workspace: Path | None = None) -> Path:
    """Return a workspace's repository: itself, unless it is a worktree, a temporary copy or a retraining's checkout.

    `dvc exp run --temp` sets `DVC_ROOT` to that repository. The `.git` file of a worktree points to it.
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
    """Return the name of the DVC experiment that this process is part of; None outside `dvc exp run`.

    `dvc exp run` sets both variables for its stages. The name alone may come from a user's shell.
    """
    return os.environ.get("DVC_EXP_NAME") if "DVC_EXP_BASELINE_REV" in os.environ else None


def make_state(root: Path | None = None) -> Path:
    """Create STATE in the workspace `root` (default: the current directory), for its owner only, and return it."""
    state = (root or Path()) / STATE
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # it belongs to another user
        if state.stat().st_mode & 0o077:
            state.chmod(0o700)
    return state


@contextmanager
def lock(name: str, *, wait: float, remedy: str, root: Path | None = None) -> Iterator[None]:
    """Hold the lock `name` of the workspace `root` (default: the current directory).

    The operating system releases it when the process ends, even after `kill -9`.

    Args:
        name: the name of the lock, such as "stage train". The error message contains it.
        wait: seconds to wait for another holder; negative waits forever.
        remedy: the remedy in the error message.

    Raises:
        WorkspaceError: another process still holds the lock after `wait` seconds.
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
    """Return True if the process `by` holds the lock `name` of the workspace `root` now.

    A later process with the same id does not count.

    Args:
        by: the process id.
    """
    stem = _stem(name, root)
    try:
        if json.loads(stem.with_suffix(".json").read_text())["pid"] != by:
            return False
        with stem.with_suffix(".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two checks at the same time must not block
        return False  # it was killed
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

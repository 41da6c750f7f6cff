"""Exclusive access to a repository, for commands that move or delete files that other processes read."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.dvc_yaml import read_stages
from pipeline.workspace import STATE, lock, main_repository

WORK = ("the flow", "retraining", "retrainings", "reproductions", "monitoring", "the registry", "backup")
SERVERS = ("the stack", "the runner")  # they hold their locks also while they are idle
TRAINING = "training-"  # prefix of the names of trainings' locks, before a digest
OPENING = "tracking store"  # held briefly while the store is opened


@contextmanager
def alone(workspace: Path, *, beside_servers: bool) -> Iterator[None]:
    """Hold every lock of the main repository: of flows, stages, retrainings, reproductions and backups.

    Locks of trainings are only checked, not held. Every training leaves a lock file, and a process cannot keep
    thousands of files open.

    Args:
        beside_servers: whether `pipeline up` may be running.

    Raises:
        WorkspaceError: another process holds one of the locks.
    """
    root = main_repository(workspace)
    names = {_stem(name) for name in (*WORK, *(f"stage {stage}" for stage in read_stages(root)), *SERVERS)}
    names |= {path.stem for path in (root / STATE / "locks").glob("*.lock")}  # includes trainings and parts of stages
    names -= {_stem(OPENING), *(map(_stem, SERVERS) if beside_servers else ())}
    trainings = {name for name in names if name.startswith(TRAINING)}
    wait_for_it = "wait for it, or end that process"
    with ExitStack() as stack:
        for name in sorted(names - trainings):
            remedy = "end it (pipeline up)" if name in map(_stem, SERVERS) else wait_for_it
            stack.enter_context(lock(name, wait=0, remedy=remedy, root=root))
        for name in sorted(trainings):
            with lock(name, wait=0, remedy=wait_for_it, root=root):
                pass
        yield


def _stem(name: str) -> str:
    return name.replace(" ", "-")

"""Exclusive access to a repository, for commands that move or delete files that other processes read."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.dvc_yaml import read_stages
from pipeline.workspace import STATE, lock, main_repository

RUNS = ("the flow", "retraining", "retrainings", "reproductions", "monitoring", "the registry", "backup")
SERVERS = ("the stack", "the runner")  # they hold their locks also while they are idle
TRAINING = "training-"  # prefix of the names of trainings' locks, before a digest
STORE = "tracking store"  # held briefly while the store is opened


@contextmanager
def exclusive_access(workspace: Path, *, with_servers: bool) -> Iterator[None]:
    """Hold every lock of the main repository: of flows, stages, retrainings, reproductions and backups.

    Locks of trainings are only checked, not held. Every training leaves a lock file, and a process cannot keep
    thousands of files open.

    Args:
        with_servers: also exclude `pipeline up`.

    Raises:
        WorkspaceError: another process holds one of the locks.
    """
    root = main_repository(workspace)
    servers = {_file_stem(name) for name in SERVERS}
    names = {_file_stem(name) for name in (*RUNS, *(f"stage {stage}" for stage in read_stages(root)))} | servers
    names |= {path.stem for path in (root / STATE / "locks").glob("*.lock")}  # includes trainings and parts of stages
    names -= {_file_stem(STORE)} | (set() if with_servers else servers)
    trainings = {name for name in names if name.startswith(TRAINING)}
    with ExitStack() as held:
        for name in sorted(names, key=lambda name: (name in trainings, name)):
            remedy = "end it (pipeline up)" if name in servers else "wait for it, or end that process"
            with ExitStack() as checked:
                checked.enter_context(lock(name, wait=0, remedy=remedy, root=root))
                if name not in trainings:
                    held.push(checked.pop_all())
        yield


def _file_stem(lock_name: str) -> str:
    return lock_name.replace(" ", "-")

"""Being the only one at work in a repository: for what moves or deletes what others would be reading."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.workspace import STATE, lock, main_repository

WORK = ("the flow", "retraining", "retrainings", "reproductions", "monitoring", "the registry", "backup")
STAGES = ("ingest", "validate", "split", "train", "evaluate", "register")
SERVERS = ("the stack", "the runner")  # which hold theirs while they wait for work
TRAINING = "training-"  # how the names of trainings' locks begin; the rest is a digest
OPENING = "tracking store"  # held for a moment, by opening the store


@contextmanager
def alone(workspace: Path, *, beside_servers: bool) -> Iterator[None]:
    """Hold every lock of the main repository: of flows, stages, retrainings, reproductions, backups.

    Of trainings, each of which leaves a lock for good, it is only seen that none is held: holding thousands would take
    more open files than a process may have.

    Args:
        beside_servers: whether `pipeline up` may be serving meanwhile.

    Raises:
        WorkspaceError: something is running there.
    """
    root = main_repository(workspace)
    names = {_stem(name) for name in (*WORK, *(f"stage {stage}" for stage in STAGES), *SERVERS)}
    names |= {path.stem for path in (root / STATE / "locks").glob("*.lock")}  # of trainings, and of parts of stages
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

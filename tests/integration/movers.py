"""Processes that move aliases at once, or are killed in the middle of it: each a real one, on a real store.

They are forked from a server that has imported MLflow once, so that ten of them start in a moment.
"""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.registry import alias_history, aliases, promotion
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.store import Store, explained, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "garments"
# The requests that write. A process is killed before the nth of them, or after the last.
WRITES = (
    "create_experiment",
    "rename_experiment",
    "create_run",
    "log_param",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_terminated",
)
END_SECONDS = 120


@dataclass(frozen=True)
class Job:
    """What one process is to do."""

    action: str  # promote, rollback, register, history
    version: str | None = None
    kill_before_write: int | None = None  # SIGKILL in place of this write, counted from 1


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    moved: str | None  # the version that became champion; None: it was not moved
    error: str  # its message
    writes: int
    was_killed: bool


def run_at_once(uri: str, jobs: Sequence[Job]) -> list[Outcome]:
    """Run each job in a process of its own. All of them start when the last is ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "mlflow.store.model_registry.sqlalchemy_store", __name__])
    barrier = context.Barrier(len(jobs))
    running = []
    for job in jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(uri, job, barrier, sender))
        process.start()
        sender.close()
        running.append((process, receiver))
    outcomes = []
    for process, receiver in running:
        assert receiver.poll(END_SECONDS), "a process did not end"
        try:
            outcomes.append(receiver.recv())
        except EOFError:
            process.join(END_SECONDS)
            assert process.exitcode == -signal.SIGKILL
            outcomes.append(Outcome(None, "", 0, was_killed=True))
        process.join(END_SECONDS)
    return outcomes


def make_versions(client: "MlflowClient", count: int, **tags: str) -> None:
    """A registered model with versions that were judged, and no alias."""
    client.create_registered_model(NAME)
    for number in range(1, count + 1):
        of_this = {"decision": "challenger", "gate": "passed", MODEL_TAG: f"{number:064x}"}
        client.create_model_version(NAME, f"models/{number}", tags=of_this | tags)


def _work(uri: str, job: Job, barrier: Any, sender: Connection) -> None:
    store = Store(uri, None, None)
    client = open_store(store)
    client.search_registered_models()  # connects
    writes = _watch(client, job.kill_before_write)
    barrier.wait(END_SECONDS)
    moved, error = None, ""
    try:
        with explained(store):
            moved = _act(client, job)
    except PipelineError as refusal:
        error = str(refusal)
    sender.send(Outcome(moved, error, len(writes), was_killed=False))


def _act(client: "MlflowClient", job: Job) -> str | None:
    reason = f"{job.action} {job.version or ''}".strip()
    if job.action == "promote":
        return promotion.promote(client, NAME, str(job.version), reason=reason).target
    if job.action == "rollback":
        return promotion.rollback(client, NAME, reason=reason, to=job.version).target
    if job.action == "register":
        aliases.move_alias(client, NAME, aliases.CHALLENGER, str(job.version), reason=reason, evidence={})
    return (
        alias_history.find_aliases(client, NAME).get(aliases.CHAMPION) if aliases.read_history(client, NAME) else None
    )


def _watch(client: "MlflowClient", kill_before: int | None) -> list[str]:
    """Count the requests that write, and die in place of one of them: they are all real, and so is the death."""
    writes: list[str] = []

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            writes.append(name)
            if len(writes) == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **kwargs)

        return call

    for name in WRITES:
        setattr(client, name, counted(name, getattr(client, name)))
    return writes

"""A complete run of the training flow: the lock, the servers and the terminal around Prefect's flow."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import WorkspaceError
from pipeline.flows.execution import Execution
from pipeline.flows.prefect_server import explain_server_errors, open_server
from pipeline.flows.terminal import Terminal
from pipeline.git import require_repository
from pipeline.partitions import require_executor
from pipeline.process_lifetime import signals_as_exceptions
from pipeline.stages.entrypoint import read_params
from pipeline.tracking.store import locate, open_store
from pipeline.workspace import lock

if TYPE_CHECKING:
    from pipeline.flows.summary import Summary

IfBusy = Literal["leave", "wait"]


def run_training(
    workspace: Path,
    *,
    until: str | None,
    force: str | None,
    if_busy: IfBusy,
    quiet: bool = False,
    on_success: Callable[["Summary"], None] = lambda summary: None,
    started_by: str = "pipeline run",
) -> str:
    """Run the training flow in a workspace, which must be the current directory.

    The plan, the first stage, the tracking store and Prefect's server start in parallel.

    Args:
        until: the last stage to run; None runs all.
        force: a stage to run even if nothing changed, or `all`; with None, DVC decides.
        if_busy: if another run is active in this workspace, raise an error (`leave`) or wait for it (`wait`).
        quiet: print the progress to standard error, so that the caller can use standard output.
        on_success: called with the summary if no stage failed.
        started_by: the command that started it, for the name of its flow run.

    Returns:
        a one-line summary of the run.

    Raises:
        ParamsError, ModelError: `params.yaml` cannot be used. Nothing was started.
        WorkspaceError: another run is active in this workspace.
        TrackingError: the tracking store cannot be used.
        FlowError: the workspace is not in git, Prefect's server or DVC cannot be used, or a stage failed.
        KeyboardInterrupt: on Ctrl-C, after all started processes have ended.
    """
    require_repository(workspace)
    require_executor()
    dataset = read_params().dataset.name
    with ExitStack() as stack:
        stack.enter_context(signals_as_exceptions())
        terminal = stack.enter_context(Terminal(stderr=quiet))
        stack.enter_context(_hold_run_lock(terminal, if_busy))
        connect = stack.enter_context(open_server(workspace))
        execution = stack.enter_context(Execution(workspace, terminal, until, force))
        preparation = stack.enter_context(ThreadPoolExecutor(1)).submit(execution.prepare)
        with terminal.waiting("starting MLflow and Prefect"):
            open_store(locate(workspace))
            preparation.result()
            # Import Prefect while its server is still starting, but never in parallel with the import of MLflow.
            from pipeline.flows.prefect_flow import run_flow

            stack.enter_context(connect())
        with explain_server_errors():
            state = run_flow(execution, dataset, on_success, started_by)
        if state.is_cancelled():
            raise KeyboardInterrupt
        if not state.is_completed():
            state.result()  # raises the error of the run
        return str(state.message)


@contextmanager
def _hold_run_lock(terminal: Terminal, if_busy: IfBusy) -> Iterator[None]:
    """Allow one run at a time in this workspace. DVC holds its own lock only briefly, so two runs would interleave."""
    remedy = "wait for it (pipeline run --if-busy wait), or end that process"
    with ExitStack() as stack:
        try:
            stack.enter_context(lock("the flow", wait=0, remedy=remedy))
        except WorkspaceError as busy:
            if if_busy == "leave":
                raise
            with terminal.waiting(f"waiting for another run: {busy.found}"):
                stack.enter_context(lock("the flow", wait=-1, remedy=remedy))
        yield

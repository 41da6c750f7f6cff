"""A run of the training flow from its start to its end: all that has to be in place around Prefect's part of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import WorkspaceError
from pipeline.flows.execution import Execution
from pipeline.flows.prefect_server import answering_server, open_server
from pipeline.flows.terminal import Terminal
from pipeline.git import require_repository
from pipeline.process import signals_as_exceptions
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
    tell: Callable[["Summary"], None] = lambda summary: None,
) -> str:
    """Run the training flow in a workspace, which must be the current directory.

    DVC is asked what to do, the first stage starts, and the tracking store and Prefect come up, all beside each other.

    Args:
        until: the last stage to run; None runs all.
        force: a stage to run even if nothing changed, or `all`; None leaves that to DVC.
        if_busy: what to do while another run is going on here.
        quiet: show the progress on standard error, so that standard output is the caller's.
        tell: is given what came of a run whose stages all ended well.

    Returns:
        the run in one line.

    Raises:
        ParamsError, ModelError: `params.yaml` cannot be used; nothing has started.
        WorkspaceError: another run is going on here.
        TrackingError: the tracking store cannot be used.
        FlowError: the workspace is not in git, Prefect's server or DVC cannot be used, or a stage failed.
        KeyboardInterrupt: by Ctrl-C; everything that was started has ended.
    """
    require_repository(workspace)
    dataset = read_params().dataset.name
    with ExitStack() as stack:
        stack.enter_context(signals_as_exceptions())
        terminal = stack.enter_context(Terminal(stderr=quiet))
        stack.enter_context(_only_run(terminal, if_busy))
        connect = stack.enter_context(open_server(workspace))
        execution = stack.enter_context(Execution(workspace, terminal, until, force))
        preparation = stack.enter_context(ThreadPoolExecutor(1)).submit(execution.prepare)
        with terminal.waiting("starting MLflow and Prefect"):
            open_store(locate(workspace))
            preparation.result()
            # Imported only now, while its server takes longest; never beside MLflow's import, in another thread.
            from pipeline.flows.prefect_flow import run_flow

            stack.enter_context(connect())
        with answering_server():
            state = run_flow(execution, dataset, tell)
        if state.is_cancelled():
            raise KeyboardInterrupt
        if not state.is_completed():
            state.result()  # raises what went wrong
        return str(state.message)


@contextmanager
def _only_run(terminal: Terminal, if_busy: IfBusy) -> Iterator[None]:
    """Be the only run in this workspace: DVC's own lock is held for moments, and two runs would take turns."""
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

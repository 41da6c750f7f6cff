"""The start and the end of a run: everything that must be in place around the flow, one beside the other."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from pipeline.data.catalog import load_entry
from pipeline.errors import FlowError, WorkspaceError
from pipeline.flows import server
from pipeline.flows.execution import Execution
from pipeline.flows.terminal import Terminal
from pipeline.params import load_params
from pipeline.workspace import lock

IfBusy = Literal["leave", "wait"]


def run_training(
    workspace: Path, *, until: str | None = None, force: str | None = None, if_busy: IfBusy = "leave"
) -> None:
    """Run the training flow in a workspace, which must be the current directory.

    Raises:
        ParamsError: before anything has started.
        WorkspaceError: another run is going on here.
        FlowError: a server or DVC cannot be used, or a stage failed.
        KeyboardInterrupt: everything that was started has ended.
    """
    load_entry(load_params().dataset.name)
    server.configure()
    with ExitStack() as stack:
        stack.enter_context(signals_as_exceptions())
        terminal = stack.enter_context(Terminal())
        stack.enter_context(only_run(terminal, if_busy))
        temporary = None
        if url := server.configured_url():
            server.require_answer(url)
        else:
            temporary = stack.enter_context(server.TemporaryServer(workspace))
        execution = Execution(workspace, terminal, until, force)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(execution.end)
        prepared = pool.submit(execution.prepare)
        prepared.result()
        from pipeline.flows.training import training_flow

        if temporary:
            with terminal.waiting("starting a temporary Prefect server"):
                temporary.wait()
            import os

            os.environ["PREFECT_API_URL"] = temporary.url
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()
        state = training_flow(execution)(until, force, return_state=True)
        print(state)
        from pipeline.flows.training import send_records

        send_records()
        if state.is_cancelled():
            raise KeyboardInterrupt


@contextmanager
def only_run(terminal: Terminal, if_busy: IfBusy) -> Iterator[None]:
    """Be the only run in this workspace."""

    def hold(wait: float) -> "contextmanager":
        return lock("the flow", wait=wait, remedy="wait for it: pipeline run --if-busy wait")

    with ExitStack() as stack:
        try:
            stack.enter_context(hold(0))
        except WorkspaceError as error:
            if if_busy == "leave":
                raise
            with terminal.waiting(f"waiting for another run ({error.found}) to end"):
                stack.enter_context(hold(-1))
        yield


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Unwind on SIGTERM and on a closed terminal as on an error, so that whatever was started is ended."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

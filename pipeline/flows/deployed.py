"""The shared frame of flows that Prefect starts: work in this checkout, end with its runner, report errors in words."""

import os
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import psutil
from prefect import State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Failed

from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.process_lifetime import end_with_input
from pipeline.proxies import bypass_proxy
from pipeline.stages.entrypoint import explain
from pipeline.tracking.processes import start_of
from pipeline.workspace import STATE, find_workspace, main_repository

NOTES = STATE / "flow-runs"  # in the main repository: the process of each flow run that our runner started
RUNNER_VARIABLE = "PIPELINE_RUNNER"  # set for the flow runs that our runner starts
RESOURCE = "pipeline.incoming"  # the resource of our Prefect events: the data that arrives
BY_HAND, BY_SCHEDULE = "by hand", "by schedule"  # what started a flow run, if it was no trigger
LONGEST_NAME = 100


def describe_start(reason: str = BY_HAND) -> str:
    """Describe what started the current flow run: the reason that its trigger gave, a schedule, or a person."""
    context = FlowRunContext.get()
    is_scheduled = context and context.flow_run and context.flow_run.auto_scheduled
    return BY_SCHEDULE if is_scheduled and reason == BY_HAND else reason


def name_flow_run() -> str:
    """Name the current flow run after what started it, and its parameters: `by hand, until split`."""
    parameters = dict(flow_run.parameters)
    start = describe_start(parameters.pop("reason", BY_HAND))
    return shorten(
        ", ".join([start, *(f"{name} {value}" for name, value in parameters.items() if value)]), LONGEST_NAME
    )


def run_deployed(run: Callable[[Path], State[None]], notify: Callable[[str, Exception], None]) -> State[None]:
    """Run a flow in the checkout of the current directory.

    An error that the user can fix becomes a failed state with its message and no traceback.

    Args:
        run: called with the checkout; returns the flow's final state.
        notify: called with the flow's name and the error, if there is one.
    """
    workspace = find_workspace()
    os.chdir(workspace)
    bypass_proxy()
    record_process(main_repository(workspace))
    try:
        state = run(workspace)
    except (PipelineError, OSError) as error:
        explained = explain(error) if isinstance(error, OSError) else error
        state = Failed(message=str(explained))
        notify(str(flow_run.flow_name), explained)
    except Exception as error:
        notify(str(flow_run.flow_name), error)
        raise
    print(f"{flow_run.flow_name}: {state.name}: {state.message}", flush=True)
    return state


def record_process(root: Path) -> None:
    """Write a note of this flow run's process, and end when its runner ends. Does nothing under another runner."""
    if os.environ.get(RUNNER_VARIABLE) and flow_run.id:
        end_with_input()
        content = {"pid": os.getpid(), "started": start_of(psutil.Process())}
        write_json(root / NOTES / f"{flow_run.id}.json", content)

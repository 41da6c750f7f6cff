"""The flows that Prefect starts: by a schedule, by a trigger, or by hand in its web pages.

Each flow does the same as the command of its name, in the checkout of the current directory. The message of its final
state describes the result. On one machine `pipeline.servers.runner` serves the flows; for a team `prefect.yaml` deploys
them to workers.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from prefect import Flow, State, flow
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from pipeline.dvc_yaml import read_stages
from pipeline.errors import PipelineError
from pipeline.files import parse_yaml
from pipeline.flows import prefect_flow
from pipeline.flows.execution import ALL_STAGES
from pipeline.flows.run import IfBusy, run_training
from pipeline.git import git
from pipeline.notices.send import notify_of_failure, notify_of_run
from pipeline.params import PARAMS_FILE, parse_params
from pipeline.proxies import bypass_proxy
from pipeline.servers.flow_run_processes import attend
from pipeline.stages.entrypoint import explain
from pipeline.workspace import find_workspace, main_repository

STAGES = list(read_stages(find_workspace()))
# Prefect shows the choices of a parameter, and refuses other values, by the JSON Schema of its annotation.
Stage = Annotated[str, Field(json_schema_extra={"enum": STAGES})]
StageOrAll = Annotated[str, Field(json_schema_extra={"enum": [*STAGES, ALL_STAGES]})]

RETRAINING = "retrain/retrain"  # the deployment in Prefect: FLOW/DEPLOYMENT
DRIFT_FOUND = "pipeline.drift.found"
RESOURCE = "pipeline.incoming"  # the resource of our events: the data that arrives
SKIPPED = "Skipped"  # state of a due run that did nothing: a later run replaces it, or another was active
STATE_NAMES = {"champion": "Promoted"}  # by outcome of a retraining; the other names are built from the outcome


@flow(name="train", description=prefect_flow.DESCRIPTION)
def train(until: Stage | None = None, force: StageOrAll | None = None) -> State[None]:
    """Run the pipeline in the checkout itself. A run that is going on there is waited for.

    Args:
        until: the last stage to run; none runs all of them
        force: a stage to run even if nothing changed, or all; none runs what changed
    """

    def run(workspace: Path) -> State[None]:
        return Completed(message=run_training(workspace, until=until, force=force, if_busy="wait", tell=notify_of_run))

    return _in_words(run)


@flow(name="retrain", description="Take in new batches, train in a checkout of its own, and let the rule decide")
def retrain(ref: str | None = None, changes: dict[str, Any] | None = None, reason: str = "by hand") -> State[None]:
    """Retrain, unless nothing is new. What is done while another retraining works: `retrain.if_busy`.

    Args:
        ref: the branch, tag or commit to retrain; none takes retrain.ref of params.yaml
        changes: parameters for this retraining only, by dotted key, such as {"train.preset": "cnn"}
        reason: why it was started, for its report
    """
    from pipeline.retraining.run import retrain as retrain_now

    def run(workspace: Path) -> State[None]:
        if_busy = read_if_busy(workspace)
        retraining = retrain_now(workspace, ref=ref, changes=changes or {}, reason=reason, if_busy=if_busy)
        if retraining.outcome == "failed":
            return Failed(message=retraining.reason)
        return Completed(name=state_name(retraining.outcome), message=retraining.reason)

    return _in_words(run)


@flow(name="monitor-data", description="Compare the batches that arrived with the training data")
def monitor_data() -> State[None]:
    """Look for drift. A finding is an event, and starts a retraining where the rule asks for one."""
    from pipeline.monitoring.run import monitor

    def run(workspace: Path) -> State[None]:
        found = monitor(workspace)
        if found.drifted:
            emit_event(DRIFT_FOUND, {"prefect.resource.id": RESOURCE}, payload=dict(found.evidence))
        if found.asks_retraining:
            run_deployment(RETRAINING, parameters={"reason": found.sentence}, timeout=0, as_subflow=False)
        return Completed(name="Drift" if found.drifted else "NoDrift", message=found.sentence)

    return _in_words(run)


FLOWS: tuple[Flow[..., Any], ...] = (train, retrain, monitor_data)


def read_if_busy(workspace: Path) -> IfBusy:
    """Read `retrain.if_busy` from HEAD. If it cannot be read, print why and return `leave`.

    A retraining uses committed values only. The file in the workspace may be half edited, and that must not stop the
    runner or a retraining from starting.
    """
    try:
        content = parse_yaml(git(workspace, "show", f"HEAD:./{PARAMS_FILE}"))
        return parse_params(content, f"{PARAMS_FILE} of HEAD").retrain.if_busy
    except (PipelineError, ValueError) as error:
        print(f"retrain.if_busy: leave, because the commit's cannot be read: {str(error).splitlines()[0]}", flush=True)
        return "leave"


def state_name(outcome: str) -> str:
    """The name of Prefect's state for a retraining's outcome: `nothing new` becomes `NothingNew`."""
    return STATE_NAMES.get(outcome) or "".join(word.capitalize() for word in outcome.split())


def _in_words(run: Callable[[Path], State[None]]) -> State[None]:
    """Run in the checkout. An error that the user can fix becomes a failed state with its message and no traceback."""
    workspace = find_workspace()
    os.chdir(workspace)
    bypass_proxy()
    attend(main_repository(workspace))
    try:
        state = run(workspace)
    except (PipelineError, OSError) as error:
        told = explain(error) if isinstance(error, OSError) else error
        state = Failed(message=str(told))
        notify_of_failure(str(flow_run.flow_name), told)
    except Exception as error:
        notify_of_failure(str(flow_run.flow_name), error)
        raise
    print(f"{flow_run.flow_name}: {state.name}: {state.message}", flush=True)
    return state

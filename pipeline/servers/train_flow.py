"""The flows that Prefect starts: by a schedule, by a trigger, or by hand in its web pages.

Each flow does the same as the command of its name, in the checkout of the current directory. The message of its final
state describes the result. On one machine `pipeline.servers.runner` serves the flows; for a team `prefect.yaml` deploys
them to workers. The flow `train` is here; the other flows are their rooms'.
"""

from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

from prefect import Flow, State, flow
from prefect.states import Completed
from pydantic import Field

from pipeline.dvc_yaml import read_stages
from pipeline.flows import prefect_flow
from pipeline.flows.deployed import name_flow_run, run_deployed
from pipeline.flows.execution import ALL_STAGES
from pipeline.flows.run import run_training
from pipeline.notices.send import notify_of_failure, notify_of_run
from pipeline.rooms import find_rooms
from pipeline.workspace import find_workspace

STAGES = list(read_stages(find_workspace()))
# Prefect shows the choices of a parameter, and refuses other values, by the JSON Schema of its annotation.
Stage = Annotated[str, Field(json_schema_extra={"enum": STAGES})]
StageOrAll = Annotated[str, Field(json_schema_extra={"enum": [*STAGES, ALL_STAGES]})]

RETRAINING = "retrain/retrain"  # the deployment in Prefect: FLOW/DEPLOYMENT
SKIPPED = "Skipped"  # state of a due run that did nothing: a later run replaces it, or another was active


@flow(name="train", description=prefect_flow.DESCRIPTION, flow_run_name=name_flow_run)
def train(until: Stage | None = None, force: StageOrAll | None = None) -> State[None]:
    """Run the pipeline in the checkout itself. A run that is going on there is waited for.

    Args:
        until: the last stage to run; none runs all of them
        force: a stage to run even if nothing changed, or all; none runs what changed
    """

    def run(workspace: Path) -> State[None]:
        return Completed(
            message=run_training(workspace, until=until, force=force, if_busy="wait", on_success=notify_of_run)
        )

    return run_deployed(run, notify_of_failure)


def find_flows() -> list[Flow[..., Any]]:
    """Return the flows of all rooms, in the order of their rooms."""
    return [resolve_name(reference) for room in find_rooms().values() for reference in room.flows.values()]

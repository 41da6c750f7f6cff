"""The flow `monitor-data`, which Prefect starts: by a schedule, or by hand in its web pages."""

from pathlib import Path

from prefect import State, flow
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.states import Completed

from pipeline.flows.deployed import RESOURCE, run_deployed
from pipeline.notices.send import notify_of_failure
from pipeline.rooms import find_rooms

DRIFT_FOUND = "pipeline.drift.found"
RETRAINING = "retrain"  # the flow to start, if a room has it


@flow(name="monitor-data", description="Compare the batches that arrived with the training data")
def monitor_data() -> State[None]:
    """Look for drift. A finding is an event, and starts a retraining where the rule asks for one."""
    from pipeline.monitoring.run import monitor

    def run(workspace: Path) -> State[None]:
        found = monitor(workspace)
        if found.drifted:
            emit_event(DRIFT_FOUND, {"prefect.resource.id": RESOURCE}, payload=dict(found.evidence))
        if found.asks_retraining and any(RETRAINING in room.flows for room in find_rooms().values()):
            deployment = f"{RETRAINING}/{RETRAINING}"
            run_deployment(deployment, parameters={"reason": found.sentence}, timeout=0, as_subflow=False)
        return Completed(name="Drift" if found.drifted else "NoDrift", message=found.sentence)

    return run_deployed(run, notify_of_failure)

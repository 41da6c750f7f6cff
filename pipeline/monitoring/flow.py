"""The flow `monitor-data`, which Prefect starts: by a schedule, or by hand in its web pages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.states import Completed

from pipeline.data.traffic import TRAFFIC
from pipeline.flows.deployed import RESOURCE, name_flow_run, run_deployed
from pipeline.flows.prefect_artifacts import publish_report
from pipeline.notices.send import notify_of_failure
from pipeline.rooms import find_rooms
from pipeline.workspace import main_repository

DRIFT_FOUND, TRAFFIC_DRIFT_FOUND = "pipeline.drift.found", "pipeline.drift.traffic"
RETRAINING = "retrain"  # the flow to start, if a room has it
WINDOW = "24h"  # of the traffic


DESCRIPTION = (
    "Compare the batches in `data/incoming/`, and the traffic of a server if it is logged, with the training data. "
    "Trains nothing; starts `retrain` if the rule in `params.yaml` asks for it.\n\n"
    "Started by a schedule (`pipeline schedule --flow monitor-data`), or here. In a terminal: `pipeline monitor`.\n\n"
    "Results: the artifacts `drift` and `drift-of-traffic`."
)


@flow(name="monitor-data", description=DESCRIPTION, flow_run_name=name_flow_run)
def monitor_data() -> State[None]:
    """Look for drift in the batches, and in the traffic if there is a log of it.

    A finding is an event, and starts a retraining where the rule asks for one.
    """
    from pipeline.monitoring.run import monitor

    def run(workspace: Path) -> State[None]:
        found = monitor(workspace)
        sentences, drifted = [found.sentence], found.drifted
        publish_report(found.report.relative_to(workspace), "drift", found.sentence)
        _act(DRIFT_FOUND, found.evidence, found.sentence, drifted=found.drifted, asks=found.asks_retraining)
        if (main_repository(workspace) / TRAFFIC).is_dir():
            from pipeline.monitoring.traffic import monitor_traffic, parse_length

            traffic = monitor_traffic(workspace, parse_length(WINDOW))
            sentences, drifted = [*sentences, traffic.sentence], drifted or traffic.drifted
            publish_report(traffic.report.relative_to(workspace), "drift-of-traffic", traffic.sentence)
            asks = traffic.asks_retraining and not found.asks_retraining
            _act(TRAFFIC_DRIFT_FOUND, traffic.evidence, traffic.sentence, drifted=traffic.drifted, asks=asks)
        return Completed(name="Drift" if drifted else "NoDrift", message=" ".join(sentences))

    return run_deployed(run, notify_of_failure)


def _act(event: str, evidence: Mapping[str, Any], sentence: str, *, drifted: bool, asks: bool) -> None:
    """Emit an event about drift, and start a retraining where the rule asks for one."""
    if drifted:
        emit_event(event, {"prefect.resource.id": RESOURCE}, payload=dict(evidence))
    if asks and any(RETRAINING in room.flows for room in find_rooms().values()):
        deployment = f"{RETRAINING}/{RETRAINING}"
        run_deployment(deployment, parameters={"reason": f"drift: {sentence}"}, timeout=0, as_subflow=False)

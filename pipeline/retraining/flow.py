"""The flow `retrain`, which Prefect starts: by a schedule, by a trigger, or by hand in its web pages."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from pipeline.errors import PipelineError
from pipeline.files import parse_yaml
from pipeline.flows.deployed import BY_HAND, describe_start, name_flow_run, run_deployed
from pipeline.flows.run import IfBusy
from pipeline.git import git
from pipeline.notices.send import notify_of_failure
from pipeline.params import PARAMS_FILE, parse_params
from pipeline.retraining.params import RetrainParams

STATE_NAMES = {"champion": "Promoted"}  # by outcome; the other names are built from the outcome


DESCRIPTION = (
    "Take in new batches, train in a checkout of its own, and let the champion rule decide. The working tree does not "
    "change; the result is a git branch `retrain/…`. Does nothing without a new batch, commit or parameter.\n\n"
    "Started by a schedule (`pipeline schedule`), by batches that arrive in `data/incoming/`, by drift if the rule in "
    "`params.yaml` asks for it, or here. In a terminal: `pipeline retrain`.\n\n"
    "Results: the artifacts `retraining` and `batches`, and those of `train`."
)


@flow(name="retrain", description=DESCRIPTION, flow_run_name=name_flow_run)
def retrain(ref: str | None = None, changes: dict[str, Any] | None = None, reason: str = BY_HAND) -> State[None]:
    """Retrain, unless nothing is new. What is done while another retraining works: `retrain.if_busy`.

    Args:
        ref: the branch, tag or commit to retrain; none takes retrain.ref of params.yaml
        changes: parameters for this retraining only, by dotted key, such as {"train.preset": "cnn"}
        reason: why it was started, for its report and its name
    """
    from pipeline.retraining.run import retrain as retrain_now

    def run(workspace: Path) -> State[None]:
        if_busy = read_if_busy(workspace)
        start = describe_start(reason)
        retraining = retrain_now(workspace, ref=ref, changes=changes or {}, reason=start, if_busy=if_busy)
        if retraining.outcome == "failed":
            return Failed(message=retraining.reason)
        return Completed(name=state_name(retraining.outcome), message=retraining.reason)

    return run_deployed(run, notify_of_failure)


def read_if_busy(workspace: Path) -> IfBusy:
    """Read `retrain.if_busy` from HEAD. If it cannot be read, print why and return `leave`.

    A retraining uses committed values only. The file in the workspace may be half edited, and that must not stop the
    runner or a retraining from starting.
    """
    try:
        content = parse_yaml(git(workspace, "show", f"HEAD:./{PARAMS_FILE}"))
        return parse_params(content, f"{PARAMS_FILE} of HEAD", of_commit=True).section(RetrainParams).if_busy
    except (PipelineError, ValueError) as error:
        print(f"retrain.if_busy: leave, because the commit's cannot be read: {str(error).splitlines()[0]}", flush=True)
        return "leave"


def state_name(outcome: str) -> str:
    """The name of Prefect's state for a retraining's outcome: `nothing new` becomes `NothingNew`."""
    return STATE_NAMES.get(outcome) or "".join(word.capitalize() for word in outcome.split())

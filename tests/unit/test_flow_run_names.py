"""The names of flow runs that Prefect starts."""

from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from pipeline.flows.deployed import LONGEST_NAME, describe_start, name_flow_run


@pytest.mark.parametrize(
    ("is_scheduled", "parameters", "name"),
    [
        (True, {"until": None, "force": None}, "by schedule"),
        (False, {"until": "split", "force": "all"}, "by hand, until split, force all"),
        (True, {"ref": None, "changes": None, "reason": "by hand"}, "by schedule"),
        (
            False,
            {"ref": "main", "changes": {"train.preset": "cnn"}},
            "by hand, ref main, changes {'train.preset': 'cnn'}",
        ),
        (False, {"ref": None, "reason": "batches in data/incoming: july"}, "batches in data/incoming: july"),
    ],
)
def test_a_flow_run_is_named_after_what_started_it(is_scheduled: bool, parameters: dict[str, Any], name: str) -> None:
    run = FlowRun.model_construct(auto_scheduled=is_scheduled)
    with FlowRunContext.model_construct(flow_run=run, parameters=parameters):
        assert name_flow_run() == name
        assert describe_start(parameters.get("reason", "by hand")) in name


def test_a_long_reason_is_shortened() -> None:
    reason = "drift: " + "batch-of-july has drifted " * 10
    with FlowRunContext.model_construct(flow_run=FlowRun.model_construct(), parameters={"reason": reason}):
        assert name_flow_run().startswith("drift: batch-of-july has drifted")
        assert len(name_flow_run()) <= LONGEST_NAME

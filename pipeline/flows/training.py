"""The training flow: one Prefect task for each stage of `dvc.yaml`."""

import logging
from typing import Any

from prefect import Flow, State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events.worker import EventsWorker
from prefect.states import Cancelled, Completed, Failed

from pipeline.flows.execution import Execution

RETRY_SECONDS = [5.0, 20.0]  # before the first and the second retry of what a network or a server did not answer
SEND_SECONDS = 5


def training_flow(execution: Execution) -> Flow[..., Any]:
    """The flow over a prepared execution, which began while Prefect's server was still starting.

    A stage's task ends as `Unchanged`, `Restored`, `Completed` or `Failed`; those behind a failed one are `NotReady`,
    Prefect's word for a task whose upstream did not complete.
    """

    def may_succeed_later(_task: object, run: Any, _state: object) -> bool:
        return execution.results[run.name].may_succeed_later

    @task(
        cache_policy=NO_CACHE,  # DVC knows what is up to date: two caches disagree sooner or later
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=may_succeed_later,
    )
    def run_stage(name: str) -> State:
        stage = next(stage for stage in execution.plan.stages if stage.name == name)
        result = execution.run(stage, get_run_logger().info)
        if result.outcome == "failed":
            return Failed(message=f"{name} failed after {result.seconds:.1f} s")
        if result.outcome == "ran":
            return Completed(message=f"ran for {result.seconds:.1f} s")
        return Completed(name=result.outcome.capitalize())

    @flow(name="train", description=__doc__)
    def train(until: str | None, force: str | None) -> State:
        states: dict[str, State] = {}
        try:
            for stage in execution.plan.stages:
                states[stage.name] = run_stage.with_options(name=stage.name, task_run_name=stage.name)(
                    stage.name, wait_for=[states[name] for name in stage.upstream], return_state=True
                )
        except KeyboardInterrupt:
            return Cancelled(message="ended by Ctrl-C")
        failed = [name for name, state in states.items() if state.is_failed()]
        not_run = [name for name, state in states.items() if state.is_pending()]
        if failed:
            return Failed(message=f"{', '.join(failed)} failed; not run: {', '.join(not_run) or 'none'}")
        return Completed(message="x")

    return train


def send_records() -> None:
    """Send the logs and events that Prefect holds back for its next batch, before a temporary server ends."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
    EventsWorker.drain_all(timeout=SEND_SECONDS)

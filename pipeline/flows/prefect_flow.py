"""The training flow: one Prefect task for each stage of `dvc.yaml`."""

from collections.abc import Callable
from typing import Any, cast

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run as prefect_run
from prefect.states import Cancelled, Completed, Failed

from pipeline.errors import FlowError, PipelineError
from pipeline.flows.execution import Execution
from pipeline.flows.prefect_server import await_answer
from pipeline.flows.summary import EVALUATION_REPORT, Summary, key_figure
from pipeline.process import skip_exit_handlers
from pipeline.registry.registration import Registration
from pipeline.registry.sync import sync
from pipeline.tracking.flow_runs import StageResult, flow_run
from pipeline.tracking.records import PARENT_VARIABLE
from pipeline.tracking.store import answers, locate

RETRY_SECONDS = [5.0, 20.0]  # before the first and the second retry of what a network or a server did not answer
SEND_SECONDS = 5
DESCRIPTION = "Bring every stage of dvc.yaml up to date"


def run_flow(execution: Execution, dataset: str, tell: Callable[[Summary], None]) -> State[None]:
    """Run the stages of an execution that is being prepared, perhaps since before Prefect's server was up.

    Within a flow run, such as one of a deployment, they are its tasks; otherwise a flow run is made for them. A stage's
    task ends as `Unchanged`, `Restored`, `Completed` or `Failed`; those behind a failed one as `NotReady`, Prefect's
    word for a task whose upstream did not complete.

    Args:
        dataset: `dataset.name`, under which MLflow records the flow.
        tell: is given what came of it, if the stages all ended well.

    Returns:
        how it ended, with the run in one line as its message.
    """

    def may_succeed_later(_task: object, run: Any, _state: object) -> bool:
        # A stage has waited for its store already: nothing can come of another try while that does not answer.
        return execution.results[run.name].may_succeed_later and answers(locate(execution.workspace))

    @task(
        cache_policy=NO_CACHE,  # DVC knows what is up to date: two caches disagree sooner or later
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=may_succeed_later,
    )
    def run_stage(name: str) -> State[None]:
        result = execution.run(name, get_run_logger().info)
        if result.outcome == "failed":
            return Failed(message=f"failed after {result.seconds:.1f} s")
        if result.outcome == "ran":
            return Completed(message=f"ran for {result.seconds:.1f} s")
        return Completed(name=result.outcome.capitalize())

    def run_stages() -> None:
        states: dict[str, State[Any]] = {}
        for stage in execution.plan.stages:
            await_answer()
            states[stage.name] = run_stage.with_options(name=stage.name, task_run_name=stage.name)(
                stage.name, wait_for=[states[name] for name in stage.upstream], return_state=True
            )

    def train() -> State[None]:
        try:
            with flow_run(dataset, {"prefect.flow_run": str(prefect_run.name)}) as tracked:
                execution.environment[PARENT_VARIABLE] = tracked.id
                try:
                    run_stages()
                except BaseException:
                    tracked.log_stages(stage_results(execution))
                    raise
                with execution.terminal.waiting("recording", announce=False):
                    synced = sync(execution.workspace)
                    summary = Summary(stage_results(execution, synced.registration), synced, execution.is_whole)
                    tracked.log_stages(summary.stages)
                    tracked.finish(synced.tags())
                execution.terminal.summarise(summary)
                await_answer()
                publish(summary)
                require_success(summary)
                tell(summary)
        except KeyboardInterrupt:
            return Cancelled(message="stopped by Ctrl-C")
        except PipelineError as error:
            return Failed(message=error.problem, data=error)
        return Completed(message=headline(summary))

    if FlowRunContext.get():
        return train()

    @flow(name="train", description=DESCRIPTION)
    def run(until: str | None, force: str | None) -> State[None]:
        return train()

    try:
        return cast(State[None], run(execution.until, execution.force, return_state=True))
    finally:
        send_records()


def stage_results(execution: Execution, registration: Registration | None = None) -> list[StageResult]:
    """What became of the stages, each with its key figure."""
    return [
        StageResult(
            result.stage,
            result.outcome,
            result.seconds,
            key_figure(result.stage, registration) if result.up_to_date else "",
        )
        for result in execution.results.values()
    ]


def require_success(summary: Summary) -> None:
    """Raise a FlowError if a stage failed. It has said why in its own words."""
    if any(result.outcome == "failed" for result in summary.stages):
        raise FlowError(headline(summary), remedy="mend what the stage says above, then run the same command again")


def headline(summary: Summary) -> str:
    """A run in one line, for the list of runs in Prefect's pages."""
    failed = [result.stage for result in summary.stages if result.outcome == "failed"]
    not_reached = [result.stage for result in summary.stages if result.outcome == "not reached"]
    if failed:
        return f"{', '.join(failed)} failed; not run: {', '.join(not_reached) or 'none'}"
    facts = dict(summary.describe())
    if facts and summary.synced.registration:
        facts["decision"] = summary.synced.registration.decision.outcome  # the paragraph is in the artifact
    return "; ".join(f"{name} {text}" for name, text in facts.items()) or "up to date"


def publish(summary: Summary) -> None:
    """Leave the run's tables and pages with Prefect, where they are shown beside it."""
    rows = [
        {"stage": result.stage, "what happened": result.outcome, "seconds": round(result.seconds, 1), "": result.figure}
        for result in summary.stages
    ]
    create_table_artifact(rows, key="stages", description=headline(summary))
    if not summary.is_whole:
        return
    links = [f"- [{name}]({address})" for name, address in summary.links().items()]
    facts = [f"**{name}**: {text}" for name, text in summary.describe()]
    create_markdown_artifact("\n\n".join([*facts, "\n".join(links)]), key="decision")
    if EVALUATION_REPORT.is_file():
        create_markdown_artifact(EVALUATION_REPORT.read_text(encoding="utf-8"), key="evaluation")


def send_records() -> None:
    """Send the logs and events that Prefect holds back for its next batch, before a temporary server ends.

    What a server does not take within some seconds is given up: Prefect would wait for it at the process's end.
    """
    for worker in (APILogWorker, EventsWorker):
        sent = cast(Any, worker.drain_all(timeout=SEND_SECONDS))
        if sent.not_done:
            skip_exit_handlers()

"""The training flow: one Prefect task for each stage of `dvc.yaml`."""

from collections.abc import Callable
from typing import Any, cast

from prefect import State, flow, get_run_logger, tags, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.runtime import flow_run as prefect_run
from prefect.states import Cancelled, Completed, Failed

from pipeline.errors import FlowError, PipelineError
from pipeline.evaluation.markdown import escape
from pipeline.flows.execution import Execution
from pipeline.flows.prefect_artifacts import publish_report
from pipeline.flows.prefect_internals import send_buffered_records
from pipeline.flows.prefect_server import wait_for_response
from pipeline.flows.summary import EVALUATION_REPORT, Summary, key_figure
from pipeline.process_lifetime import skip_exit_handlers
from pipeline.registry.registration import Registration
from pipeline.registry.sync import sync
from pipeline.tracking.flow_runs import StageResult, flow_run
from pipeline.tracking.parent_run_id import write_parent_run
from pipeline.tracking.store import answers, locate
from pipeline.workspace import project_name

RETRY_SECONDS = [5.0, 20.0]  # before the first and the second retry, if a network or a server did not respond
SEND_SECONDS = 5
# One line for each paragraph: Prefect shows a line break as one.
DESCRIPTION = (
    "Bring every stage of `dvc.yaml` up to date. Each stage is a task; DVC skips those whose data, code and parameters "
    "are unchanged.\n\n"
    "Started by `pipeline run`, by a schedule, or here.\n\n"
    "Results: the artifacts `stages`, `decision` and `evaluation`."
)


def run_flow(execution: Execution, dataset: str, on_success: Callable[[Summary], None], started_by: str) -> State[None]:
    """Run the stages of a prepared execution as Prefect tasks.

    In a flow run, such as one of a deployment, the stages become its tasks. Otherwise this creates a flow run. A
    stage's task ends as `Unchanged`, `Restored`, `Completed` or `Failed`. Tasks downstream of a failed one end as
    `NotReady`, which is Prefect's state for a task whose upstream did not complete.

    Args:
        dataset: `dataset.name`, under which MLflow records the flow.
        on_success: called with the summary if no stage failed.
        started_by: the command that started it, which names a created flow run.

    Returns:
        the final state. Its message is a one-line summary of the run.
    """

    def is_temporary(_task: object, run: Any, _state: object) -> bool:
        # The stage has already waited for its store. A retry would fail while the store does not respond.
        return execution.results[run.name].is_temporary and answers(locate(execution.workspace))

    @task(
        cache_policy=NO_CACHE,  # DVC has a cache already: two caches disagree sooner or later
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=is_temporary,
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
            wait_for_response()
            states[stage.name] = run_stage.with_options(name=stage.name, task_run_name=stage.name)(
                stage.name, wait_for=[states[name] for name in stage.upstream], return_state=True
            )

    def train() -> State[None]:
        try:
            with flow_run(dataset, {"prefect.flow_run": f"{prefect_run.name} ({prefect_run.id})"}) as tracked:
                write_parent_run(execution.parent_file, tracked.id)
                try:
                    run_stages()
                except BaseException:
                    tracked.log_stages(stage_results(execution))
                    raise
                with execution.terminal.waiting("recording", announce=False):
                    synced = sync(execution.workspace)
                    summary = Summary(stage_results(execution, synced.registration), synced, execution.is_whole)
                    tracked.log_stages(summary.stages)
                    tracked.log_result(synced.tags())
                execution.terminal.summarise(summary)
                wait_for_response()
                publish(summary)
                require_success(summary)
                on_success(summary)
        except KeyboardInterrupt:
            return Cancelled(message="stopped by Ctrl-C")
        except PipelineError as error:
            return Failed(message=error.problem, data=error)
        return Completed(message=headline(summary))

    if FlowRunContext.get():
        return train()

    options = {"--until": execution.until, "--force": execution.force}
    command = " ".join([started_by, *(f"{name} {value}" for name, value in options.items() if value)])

    @flow(name="train", description=DESCRIPTION, flow_run_name=lambda: f"{dataset}: {command}")
    def run(until: str | None, force: str | None) -> State[None]:
        return train()

    try:
        with tags(project_name(), dataset):
            return cast(State[None], run(execution.until, execution.force, return_state=True))
    finally:
        send_records()


def stage_results(execution: Execution, registration: Registration | None = None) -> list[StageResult]:
    """Return the outcome of each stage, with its key figure."""
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
    """Raise a FlowError if a stage failed. The stage has already printed the reason."""
    if any(result.outcome == "failed" for result in summary.stages):
        raise FlowError(
            headline(summary), remedy="correct what the stage reports above, then run the same command again"
        )


def headline(summary: Summary) -> str:
    """Return a one-line summary of a run, for the list of runs in Prefect's UI."""
    failed = [result.stage for result in summary.stages if result.outcome == "failed"]
    not_reached = [result.stage for result in summary.stages if result.outcome == "not reached"]
    if failed:
        return f"{', '.join(failed)} failed; not run: {', '.join(not_reached) or 'none'}"
    facts = dict(summary.describe())
    if facts and summary.synced.registration:
        facts["decision"] = summary.synced.registration.decision.outcome  # the full reason is in the artifact
    return "; ".join(f"{name} {text}" for name, text in facts.items()) or "up to date"


def publish(summary: Summary) -> None:
    """Publish the run's table, decision and evaluation report as artifacts in Prefect."""
    rows = [
        # Prefect does not show a column without a name.
        {"stage": each.stage, "what happened": each.outcome, "seconds": f"{each.seconds:.1f}", "result": each.figure}
        for each in summary.stages
    ]
    links = [f"[{name}]({address})" for name, address in summary.links().items()]
    create_table_artifact(rows, key="stages", description="; ".join([headline(summary), *links]))
    if not summary.is_whole:
        return
    facts = [f"**{name}**: {escape(text)}" for name, text in summary.describe()]
    create_markdown_artifact("\n\n".join([*facts, *links]), key="decision", description=headline(summary))
    if EVALUATION_REPORT.is_file():
        publish_report(EVALUATION_REPORT, "evaluation", "The model on the test split: metrics, gate, classes, mistakes")


def send_records() -> None:
    """Send the logs and events that Prefect has buffered, before a temporary server ends.

    If the server does not accept them within SEND_SECONDS, skip Prefect's exit handler, which would wait without a
    limit.
    """
    if not send_buffered_records(SEND_SECONDS):
        skip_exit_handlers()

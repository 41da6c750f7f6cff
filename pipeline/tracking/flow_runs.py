"""The MLflow run of a flow: its stages with their outcomes, and the resulting model.

    with flow_run(params.dataset.name, {"flow.run": prefect_name}) as tracked:
        environment["PIPELINE_PARENT_RUN"] = tracked.id     # for the stages; waits until the run is open
        ...
        tracked.log_stages([StageResult("train", "ran", 12.3, "validation accuracy 0.88"), ...])
        tracked.log_result(sync(workspace).tags())

The run is opened in the background (importing MLflow takes 2 s), so read `id` as late as possible. It ends as FAILED if
a stage failed or the block raised, as KILLED on Ctrl-C and on cancellation, and otherwise as FINISHED.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from pipeline.evaluation.markdown import escape, table
from pipeline.tracking import processes
from pipeline.tracking.background import Background, ended_with_block
from pipeline.tracking.experiments import experiment_id
from pipeline.tracking.provenance import COMMIT_TAG
from pipeline.tracking.queries import all_experiments, find_or_none
from pipeline.tracking.run_names import shorten
from pipeline.tracking.store import explained, locate, open_store
from pipeline.tracking.training_runs import Record, milliseconds

NAME, TRAINED = "pipeline run", "trained"  # the name of a run until its stages have ended
SHOWN = ("best_validation_accuracy", "test_accuracy")  # metrics of a training that its flow has, too
Outcome = Literal["ran", "restored", "unchanged", "failed", "not reached"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage of a flow."""

    stage: str
    outcome: Outcome
    seconds: float
    figure: str = ""  # its most important figure, as text


class FlowRun:
    """A run that is recorded in a background thread during the flow. Every method may raise a TrackingError."""

    def __init__(self, name: str, tags: Mapping[str, str]) -> None:
        self._background = Background()
        self._record = self._background.start(_open, name, tags)
        self._failed = False
        self._summary = ""

    @property
    def id(self) -> str:
        """MLflow's run id. Waits until the run is open."""
        return self._record.result().id

    def log_stages(self, results: Sequence[StageResult]) -> None:
        """Log the outcomes of the stages, in their order. Can be called again during the flow."""
        self._failed = any(result.outcome == "failed" for result in results)
        self._summary = summarise(results)
        self._background.start(_log_stages, self._record.result(), tuple(results), self._summary)

    def log_result(self, tags: Mapping[str, str]) -> None:
        """Log tags of the resulting model, and what MLflow's table of runs shows of its training.

        Another run may have trained it.
        """
        summary = self._summary
        self._background.start(lambda: _log_result(self._record.result(), dict(tags), summary))

    def end(self, status: str) -> None:
        """Close the run. FINISHED becomes FAILED if a stage failed."""
        status = "FAILED" if status == "FINISHED" and self._failed else status
        try:
            self._background.finish(lambda: self._record.result().end(status))
        finally:
            self._background.close()


@contextmanager
def flow_run(name: str, tags: Mapping[str, str]) -> Iterator[FlowRun]:
    """Record the flow in the block (see the top of this file).

    Args:
        name: of the MLflow experiment: the dataset's name, so that the flow's training runs are in the same table.
        tags: further facts about the flow.
    """
    run = FlowRun(name, tags)
    with ended_with_block(run.end):
        yield run


def _open(name: str, tags: Mapping[str, str]) -> Record:
    store = locate()
    client = open_store(store)
    with explained(store):
        processes.end_abandoned(client, all_experiments(client))
        own = {processes.PROCESS_TAG: processes.this_process(), "mlflow.source.name": "pipeline run"}
        run = client.create_run(experiment_id(client, store, name), tags={**own, **tags}, run_name=NAME)
        return Record(store, client, run)


def summarise(results: Sequence[StageResult]) -> str:
    """Summarise the outcomes of the stages, for the name of the run."""
    by_outcome = {outcome: [result.stage for result in results if result.outcome == outcome] for outcome in OUTCOMES}
    if by_outcome["failed"]:
        return f"{', '.join(by_outcome['failed'])} failed"
    if "train" in by_outcome["ran"]:
        return TRAINED
    if by_outcome["not reached"]:
        return "stopped"
    found = [f"{outcome} {', '.join(by_outcome[outcome])}" for outcome in ("ran", "restored") if by_outcome[outcome]]
    return "; ".join(found) or "nothing changed"


def name_result(summary: str, tags: Mapping[str, str], training: str) -> str:
    """Name a flow by its result: `champion 3: mlp 90.20% dfaa08b4`. MLflow's table shows the first 17 characters."""
    decision = " ".join(filter(None, (tags.get("result.decision"), tags.get("result.version"))))
    parts = [] if summary == TRAINED and decision else [summary]
    return ": ".join(filter(None, [*parts, decision, training]))


def _log_result(record: Record, tags: Mapping[str, str], summary: str) -> None:
    """Log the tags, the name, and the figures, commit and data of the training: one row then has all of it."""
    from mlflow.entities import Metric, RunTag

    client, now = record.client, milliseconds()
    with explained(record.store):
        training = find_or_none(client.get_run, tags["result.run"]) if "result.run" in tags else None
        name = name_result(summary, tags, training.info.run_name if training else "")
        shown = {**tags, "mlflow.runName": shorten(name)}
        metrics = []
        if "result.decision" in tags:
            shown["decision"] = tags["result.decision"]
        if training:
            metrics = [Metric(key, value, now, 0) for key, value in training.data.metrics.items() if key in SHOWN]
            shown |= {key: training.data.tags[key] for key in (COMMIT_TAG,) if key in training.data.tags}
        client.log_batch(record.id, metrics=metrics, tags=[RunTag(key, value) for key, value in shown.items()])
        if training and training.inputs.dataset_inputs:
            client.log_inputs(record.id, training.inputs.dataset_inputs)


def _log_stages(record: Record, results: Sequence[StageResult], summary: str) -> None:
    record.log_metrics({f"seconds/{result.stage}": result.seconds for result in results})
    record.set_tags({f"stage.{result.stage}": result.outcome for result in results} | {"mlflow.runName": summary})
    rows = [(result.stage, result.outcome, f"{result.seconds:.1f}", escape(result.figure)) for result in results]
    page = table(("stage", "what happened", "seconds", "figure"), rows) + "\n"
    with explained(record.store):
        record.client.log_text(record.id, page, "stages.md")
        record.client.log_dict(record.id, {"stages": [asdict(result) for result in results]}, "stages.json")

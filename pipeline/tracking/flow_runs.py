"""The flow's own run: which stages it went through, what happened to each, and which model stood at its end.

    with flow_run(params.dataset.name, {"flow.run": prefect_name}) as tracked:
        environment["PIPELINE_PARENT_RUN"] = tracked.id     # for the stages; waits until the run is open
        ...
        tracked.log_stages([StageResult("train", "ran", 12.3, "validation accuracy 0.88"), ...])
        tracked.finish(sync(workspace).tags())

The run is opened beside the flow (importing MLflow takes 2 s), so ask for `id` as late as can be. It ends as FAILED
when a stage failed or the block raised, as KILLED on Ctrl-C and on cancellation, and otherwise as FINISHED.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.tracking import processes
from pipeline.tracking.background import Background
from pipeline.tracking.queries import all_experiments
from pipeline.tracking.records import Record
from pipeline.tracking.store import experiment_id, explained, locate, open_store


@dataclass(frozen=True)
class StageResult:
    """What a flow did about one stage."""

    stage: str
    outcome: Literal["ran", "restored", "unchanged", "failed", "not reached"]
    seconds: float
    figure: str = ""  # its key figure, in words


class FlowRun:
    """A run that is recorded from a thread of its own, beside the flow. Every method may raise a TrackingError."""

    def __init__(self, name: str, tags: Mapping[str, str]) -> None:
        self._background = Background()
        self._record = self._background.start(_open, name, tags)
        self._failed = False

    @property
    def id(self) -> str:
        """MLflow's id of the run. Waits until it is open."""
        return self._record.result().id

    def log_stages(self, results: Sequence[StageResult]) -> None:
        """Record what happened to the stages, in their order. May be called again as the flow goes on."""
        self._failed = any(result.outcome == "failed" for result in results)
        self._background.start(_log_stages, self._record.result(), tuple(results))

    def finish(self, tags: Mapping[str, str]) -> None:
        """Record the model that stands at the end, whichever run made it."""
        self._background.start(lambda: self._record.result().set_tags(dict(tags)))

    def end(self, status: str) -> None:
        """Close the run; as FAILED if a stage failed."""
        status = "FAILED" if status == "FINISHED" and self._failed else status
        try:
            self._background.finish(lambda: self._record.result().end(status))
        finally:
            self._background.close()


@contextmanager
def flow_run(name: str, tags: Mapping[str, str]) -> Iterator[FlowRun]:
    """Record a flow, which is the block (see the top of this file).

    Args:
        name: the MLflow experiment: the dataset's name, so that the trainings below it stand in the same table.
        tags: whatever else is known of the flow.
    """
    run = FlowRun(name, tags)
    try:
        yield run
    except BaseException as error:
        killed = not isinstance(error, Exception)  # Ctrl-C, an exit, a cancellation, Prefect's own termination
        with suppress(Exception):  # what ended the flow is what the reader must see
            run.end("KILLED" if killed else "FAILED")
        raise
    run.end("FINISHED")


def _open(name: str, tags: Mapping[str, str]) -> Record:
    store = locate()
    client = open_store(store)
    with explained(store):
        processes.end_abandoned(client, all_experiments(client))
        own = {processes.PROCESS_TAG: processes.this_process(), "mlflow.source.name": "pipeline run"}
        run = client.create_run(experiment_id(client, store, name), tags={**own, **tags}, run_name="flow")
        return Record(store, client, run)


def _log_stages(record: Record, results: Sequence[StageResult]) -> None:
    record.log_metrics({f"seconds/{result.stage}": result.seconds for result in results})
    record.set_tags({f"stage.{result.stage}": result.outcome for result in results})
    rows = [f"| {result.stage} | {result.outcome} | {result.seconds:.1f} | {result.figure} |" for result in results]
    page = "\n".join(["| stage | what happened | seconds | figure |", "|---|---|---|---|", *rows, ""])
    with explained(record.store):
        record.client.log_text(record.id, page, "stages.md")
        record.client.log_dict(record.id, {"stages": [asdict(result) for result in results]}, "stages.json")

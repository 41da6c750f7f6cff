"""MLflow runs of the stages: `train` opens a run, `evaluate` adds to the run of the same model.

A model that DVC restored from its cache is linked to the run that trained it. If the store does not have that run, the
run is rebuilt from the stage outputs and tagged `restored`.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline.process_lifetime import signals_as_exceptions
from pipeline.tracking.background import Background, ended_with_block
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.training_runs import TrainingFacts, find_or_rebuild, milliseconds, monitor_system, open_record

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from pipeline.tracking.training_runs import Record

__all__ = ["TrainingFacts", "TrainingRun", "log_evaluation", "training_run"]


class TrainingRun:
    """A run that is recorded in a background thread during the training."""

    def __init__(self, facts: TrainingFacts) -> None:
        self._background = Background()
        self._opened = self._background.start(_open, facts)
        self._completed = False

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch, counted from 1. Does not wait for the store.

        Raises:
            TrackingError: the store failed to record an earlier call.
        """
        now = milliseconds()
        self._background.start(lambda: self._record.log_metrics(metrics, step=epoch, timestamp=now))

    def complete(self, model_file: Path, reports: Path) -> None:
        """Log the reports, the model and its digest, after `train` has written all outputs.

        Args:
            model_file: `models/model.keras`.
            reports: the directory `reports/`, which also has the reports on the data.

        Raises:
            TrackingError: the store failed to record it.
        """
        outputs = _outputs(model_file)
        if reports.resolve() != (outputs.root / "reports").resolve():
            raise ValueError(f"{reports} does not belong to {model_file}")
        self._background.finish(lambda: self._record.complete(outputs))
        self._completed = True

    def end(self, status: str) -> None:
        """End the run. FINISHED becomes FAILED if `complete` did not succeed."""
        status = "FAILED" if status == "FINISHED" and not self._completed else status
        try:
            self._background.finish(lambda: _close(*self._opened.result(), status))
        finally:
            self._background.close()

    @property
    def _record(self) -> "Record":
        return self._opened.result()[0]


@contextmanager
def training_run(facts: TrainingFacts) -> Iterator[TrainingRun]:
    """Record the training in the block, which calls `log_epoch` after each epoch and `complete` at the end.

    The run ends as FINISHED, as FAILED on an exception, and as KILLED on Ctrl-C and SIGTERM.

    Raises:
        TrackingError: the store cannot be used. It is opened in the background, so a later call may raise this.
    """
    is_main = threading.current_thread() is threading.main_thread()  # Python handles signals in no other thread
    with signals_as_exceptions() if is_main else nullcontext():
        run = TrainingRun(facts)
        with ended_with_block(run.end):
            yield run


def log_evaluation(model_file: Path, evaluation: Path, timings: Mapping[str, float] | None = None) -> None:
    """Add an evaluation to the run that trained the model.

    Args:
        model_file: `models/model.keras`.
        evaluation: the directory `reports/evaluation`, complete.
        timings: metrics of this machine, which are in no output.

    Raises:
        TrackingError: the store cannot be used.
    """
    outputs = _outputs(model_file)
    if evaluation.resolve() != outputs.evaluation.resolve():
        raise ValueError(f"{evaluation} does not belong to {model_file}")
    record = find_or_rebuild(outputs)
    record.add_evaluation(outputs)
    if timings:
        record.log_metrics(timings)


def _open(facts: TrainingFacts) -> "tuple[Record, SystemMetricsMonitor]":
    psutil.cpu_percent()  # the next call in this thread returns the load since this one
    record = open_record(facts)
    return record, monitor_system(record)


def _close(record: "Record", monitor: "SystemMetricsMonitor", status: str) -> None:
    monitor.finish()
    # One sample over the whole training, because a short training has no other sample.
    for part in monitor.monitors:
        part.clear_metrics()
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()
    record.end(status)


def _outputs(model_file: Path) -> Outputs:
    return Outputs(model_file.parent.parent)

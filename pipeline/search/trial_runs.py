"""The MLflow runs of a sweep: one for the sweep, and one nested under it for each trial."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.search.definition import Definition
from pipeline.tracking import nested_runs
from pipeline.tracking.background import Background, ended_with_block
from pipeline.tracking.run_names import format_values, shorten
from pipeline.tracking.store import locate_unserved
from pipeline.tracking.training_runs import Record, milliseconds

if TYPE_CHECKING:
    from optuna import Study, Trial

    from pipeline.models.training import Epoch

SOURCE = "pipeline sweep"
OPENING, OPENING_SECONDS = "", 60  # instead of an id while the run is opened, and for how long
STATUSES = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}


def run_attribute() -> str:
    """Return the attribute of a study or a trial with the id of its run in this store: machines may have others."""
    return f"run in {hashlib.sha256(str(locate_unserved()).encode()).hexdigest()[:12]}"


class TrialRun:
    """The run of a trial, which is recorded in a background thread. Every method may raise a TrackingError."""

    def __init__(self, study: "Study", trial: "Trial", definition: Definition, values: Mapping[str, Any]) -> None:
        self._background, self._ended = Background(), False
        self._record = self._background.start(_open, study, trial, definition, dict(values))

    def log_epoch(self, epoch: "Epoch") -> None:
        """Log the metrics of an epoch."""
        now, number, metrics = milliseconds(), epoch.epoch, epoch.metrics()
        self._background.start(lambda: self._record.result().log_metrics(metrics, step=number, timestamp=now))

    def finish(self, state: str, facts: Mapping[str, Any]) -> None:
        """Log the facts of a trial that has ended, and close the run."""
        figures = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        tags = {"trial.state": state} | {
            f"trial.{name}": str(facts[name]) for name in ("model_sha256", "reused") if name in facts
        }

        def write() -> None:
            record = self._record.result()
            record.log_metrics(figures)
            record.set_tags(tags)
            record.end(STATUSES[state])

        self._background.finish(write)
        self._ended = True

    def close(self, status: str) -> None:
        """End the recording. A run that `finish` did not close gets the status."""
        try:
            if not self._ended:
                self._background.finish(lambda: self._record.result().end(status))
        finally:
            self._background.close()


@contextmanager
def open_trial_run(
    study: "Study", trial: "Trial", definition: Definition, values: Mapping[str, Any]
) -> Iterator[TrialRun]:
    """Record the trial in the block. A trial from before a kill continues its run."""
    run = TrialRun(study, trial, definition, values)
    with ended_with_block(run.close):
        yield run


def announce_sweep_run(study: "Study") -> None:
    """Announce that this process opens the run of a sweep: the runs of its trials wait for it."""
    if not study.user_attrs.get(run_attribute()):
        study.set_user_attr(run_attribute(), OPENING)


def _find_parent(study: "Study") -> str | None:
    """Return the id of the run of a sweep. None if nothing opens one in this store, as for a worker by itself."""
    deadline = time.monotonic() + OPENING_SECONDS
    while (found := study.user_attrs.get(run_attribute())) == OPENING and time.monotonic() < deadline:
        time.sleep(0.1)
    return found or None


def open_sweep_run(study: "Study", definition: Definition) -> Record:
    """Open the run of a sweep, or continue it."""
    name = study.study_name
    record = nested_runs.open_run(
        str(definition.sections["dataset"]["name"]),
        f"sweep {name}",
        tags={"sweep": name},
        params=_describe(definition),
        source=SOURCE,
        former=study.user_attrs.get(run_attribute()) or None,
    )
    study.set_user_attr(run_attribute(), record.id)
    return record


def _open(study: "Study", trial: "Trial", definition: Definition, values: Mapping[str, Any]) -> Record:
    record = nested_runs.open_run(
        str(definition.sections["dataset"]["name"]),
        shorten(f"{study.study_name} trial {trial.number}: {format_values(values)}"),
        tags={"sweep": study.study_name, "trial": str(trial.number)},
        params={"preset": definition.sections["train"]["preset"], **values},
        source=SOURCE,
        parent=_find_parent(study),
        former=trial.user_attrs.get(run_attribute()),
    )
    trial.set_user_attr(run_attribute(), record.id)
    return record


def _describe(definition: Definition) -> dict[str, Any]:
    sweep = definition.sections["sweep"]
    named = {name: sweep[name] for name in ("sampler", "pruner", "seed")}
    return {"preset": definition.sections["train"]["preset"], **named} | {
        f"space.{key}": value for key, value in sweep["space"].items()
    }

"""The summary of a run as text, for the terminal, Prefect and MLflow."""

import csv
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.git import SET_AUTHOR, lacks_author

if TYPE_CHECKING:
    from pipeline.registry.registration import Registration
    from pipeline.registry.sync import Synced
    from pipeline.tracking.flow_runs import StageResult

LOCK_FILE = Path("dvc.lock")
METRICS = Path("reports/evaluation/metrics.json")
GATE = Path("reports/evaluation/gate.json")
REGISTRATION = Path("reports/registration.json")
EVALUATION_REPORT = Path("reports/evaluation/report.md")
MLFLOW_UI = "http://127.0.0.1:5000"  # default address of `mlflow ui`


@dataclass(frozen=True)
class Summary:
    """The results of a finished run."""

    stages: Sequence["StageResult"]
    synced: "Synced"
    is_whole: bool  # every stage is up to date, so the outputs belong together

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield the results as pairs of a name and a sentence; none if a stage is not up to date."""
        registration = self.synced.registration
        if self.is_whole and registration:
            yield "accuracy", f"{describe_accuracy()} on the test images"
            yield "decision", f"{registration.decision.outcome}: {registration.decision.reason}"
            yield "model", describe_version(registration)

    def next_steps(self) -> Iterator[tuple[str, str]]:
        """Yield reports and next steps as pairs of a name and a file, an address or a command."""
        from pipeline.tracking.store import pages_command

        if self.is_whole:
            yield "report", str(EVALUATION_REPORT)
            yield "figures", "dvc plots show"
        yield "runs", _server() or pages_command()
        if _is_uncommitted(LOCK_FILE):
            if lacks_author(Path()):
                yield "first", SET_AUTHOR
            yield "keep", f"git add {LOCK_FILE} && git commit"

    def links(self) -> dict[str, str]:
        """Return links to MLflow's UI."""
        base = _server() or MLFLOW_UI
        registration = self.synced.registration
        return {
            **({"training run": f"{base}/#/runs/{self.synced.run}"} if self.synced.run else {}),
            **(
                {"model version": f"{base}/#/models/{registration.name}/versions/{registration.version}"}
                if registration and registration.version
                else {}
            ),
        }


def _server() -> str:
    """Return the address of the tracking server (configured, or the project's own); empty if there is none."""
    from pipeline.tracking.store import locate

    store = locate()
    return str(store).rstrip("/") if store.is_server else ""


def key_figure(stage: str, registration: "Registration | None" = None) -> str:
    """Return the key figure of a stage that is up to date; empty for a stage that a user added."""
    if stage == "register" and registration:
        return describe_version(registration)
    read = KEY_FIGURES.get(stage)
    return read() if read else ""


def describe_version(registration: "Registration") -> str:
    """Return a model's name, version and aliases in the registry."""
    if registration.version is None:
        return f"not registered as {registration.name}"
    aliases = f" ({', '.join(registration.aliases)})" if registration.aliases else ""
    return f"{registration.name} version {registration.version}{aliases}"


def describe_state(workspace: Path) -> Iterator[tuple[str, str]]:
    """Describe the model in the workspace and those in the registry: pairs of a name and a sentence.

    Raises:
        TrackingError: the store cannot be used.
    """
    if METRICS.is_file() and GATE.is_file():
        missed = failed_checks()
        yield "accuracy", f"{describe_accuracy()} on the test images"
        yield "gate", f"rejected: {', '.join(missed)}" if missed else "passed"
    else:
        yield "model", "none has been evaluated"
    yield from _describe_aliases(workspace)


def _describe_aliases(workspace: Path) -> Iterator[tuple[str, str]]:
    """Describe the aliases of the current dataset's model. Does not create a missing store."""
    from pipeline.registry.alias_history import find_aliases
    from pipeline.registry.registration import current_name
    from pipeline.registry.versions import find_deleted_run
    from pipeline.tracking.store import explained, locate, open_store

    store = locate(workspace)
    aliases: dict[str, str] = {}
    deleted: dict[str, str] = {}
    if not store.database or store.database.exists():
        client, name = open_store(store), current_name(workspace)
        with explained(store):
            aliases = find_aliases(client, name)
            deleted = {
                alias: run for alias, number in aliases.items() if (run := find_deleted_run(client, name, number))
            }
    yield "registry", ", ".join(f"{alias} is version {version}" for alias, version in aliases.items()) or "no champion"
    for alias, run in deleted.items():
        yield (
            "incomplete",
            f"the run of the {alias} was deleted: mlflow runs restore --run-id {run}",
        )


def describe_refused_batches() -> Iterator[tuple[str, str]]:
    """Describe batches in `data/incoming/` that would stop a run: pairs of a name and a sentence."""
    from pipeline.data.batches import INCOMING, find_batches

    try:
        find_batches(INCOMING)
    except DataError as error:
        yield "stops a run", f"{error.problem}: {error.remedy}"


def describe_accuracy() -> str:
    """Return the accuracy on the test images with its 95 % interval."""
    metrics = read_json(METRICS)
    return f"{metrics['accuracy']:.2%} ({metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%})"


def failed_checks() -> list[str]:
    """Return the thresholds of the gate that the model missed; empty if it passed."""
    checks = read_json(GATE)["checks"]
    return [f"{check['name']} {check['threshold']}: {check['value']}" for check in checks if not check["passed"]]


def _is_uncommitted(path: Path) -> bool:
    changes = subprocess.run(["git", "status", "--porcelain", "--", str(path)], capture_output=True, check=False)
    return bool(changes.stdout)


def _ingest() -> str:
    from pipeline.data.table import count_rows

    return f"{sum(count_rows(Path(f'data/dataset/{split}.parquet')) for split in ('train', 'test')):,} images"


def _validate() -> str:
    expectations = read_json(Path("reports/validation.json"))["expectations"]
    return f"{sum(found['passed'] for found in expectations)} of {len(expectations)} expectations hold"


def _split() -> str:
    splits: Mapping[str, Any] = read_json(Path("reports/split.json"))["splits"]
    return ", ".join(f"{splits[name]['images']:,} {name}" for name in ("train", "validation", "test"))


def _train() -> str:
    best = read_json(Path("reports/training/settings.json"))["best_epoch"]
    with Path("reports/training/history.csv").open(newline="", encoding="utf-8") as file:
        accuracy = {int(row["epoch"]): float(row["validation_accuracy"]) for row in csv.DictReader(file)}
    return f"validation accuracy {accuracy[best]:.2%} in epoch {best}"


def _evaluate() -> str:
    missed = failed_checks()
    return f"accuracy {describe_accuracy()}" + (f"; misses {', '.join(missed)}" if missed else "")


def _register() -> str:
    registration = read_json(REGISTRATION)
    return f"{registration['name']}: {registration['gate']}"


KEY_FIGURES: dict[str, Callable[[], str]] = {
    "ingest": _ingest,
    "validate": _validate,
    "split": _split,
    "train": _train,
    "evaluate": _evaluate,
    "register": _register,
}

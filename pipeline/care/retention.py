"""Retention of MLflow's runs and models: find the unneeded ones and delete them permanently.

These runs are kept:

- runs of registered versions, whatever the decision was;
- runs with the history of aliases, and runs that its evidence names;
- every challenger in the ledger of judgements;
- runs that have not ended;
- the run of the model in the workspace;
- the newest runs of each kind;
- the parents of all these;
- runs that the pipeline did not make.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import TrackingError
from pipeline.files import file_digest, parse_yaml
from pipeline.registry.alias_history import EVIDENCE, ROLE_TAG
from pipeline.registry.challenger_count import LEDGER_TAG
from pipeline.registry.load_version import SCHEME
from pipeline.tracking import logged_models
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.mlflow_internals import delete_permanently, find_deleted_models
from pipeline.tracking.provenance import BATCH_TAG, COMMIT_TAG
from pipeline.tracking.queries import all_experiments, all_versions, pages, search_runs
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import Store, explained
from pipeline.tracking.training_runs import EVALUATION_TAG, LOCK_ARTIFACT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

SOURCE_TAG, PARENT_TAG = "mlflow.source.name", "mlflow.parentRunId"
TRAINING = "pipeline.stages.train"
KINDS = (TRAINING, "pipeline run")  # sources of runs: runs of other sources are never deleted
ENDED = ("FINISHED", "FAILED", "KILLED")
MODELS_PAGE = 100
RUNS_AT_ONCE = 50  # per call of MLflow's gc; after a kill, completed calls are not repeated


@dataclass(frozen=True)
class Unneeded:
    """Unneeded run or logged model."""

    id: str
    name: str
    place: str  # URI of its artifacts
    bytes: int  # size of its artifacts


@dataclass(frozen=True)
class Retention:
    """Data to delete from a store, and data to keep."""

    store: Store
    runs: tuple[Unneeded, ...]
    models: tuple[Unneeded, ...]
    commits: frozenset[str]  # git commits of the runs that are kept
    data: frozenset[str]  # recorded DVC digests of the inputs and outputs of these runs


def review(store: Store, client: "MlflowClient", workspace: Path, keep_runs: int) -> Retention:
    """Find the unneeded runs and models of a store. Deletes nothing.

    Args:
        keep_runs: number of the newest trainings to keep, and of the newest runs of the flow.

    Raises:
        TrackingError: the store cannot be used, or is a server, which deletes nothing permanently.
    """
    require_direct(store)
    with explained(store):
        runs = {run.info.run_id: run for run in search_runs(client, "", deleted=True)}
        versions = all_versions(client)
        needed = set(_find_needed(runs.values(), workspace, keep_runs)) | {version.run_id for version in versions}
        while parents := {_parent(runs[run]) for run in needed & runs.keys()} - needed:
            needed |= parents
        active = set(all_experiments(client))
        unneeded = {
            number: run
            for number, run in runs.items()
            if number not in needed and run.data.tags.get(SOURCE_TAG) in KINDS and run.info.experiment_id in active
        }
        registered = {str(version.source).removeprefix(SCHEME) for version in versions}
        registered |= {version.model_id for version in versions if version.model_id}
        models = [
            model
            for model in _all_models(store, client)
            if MODEL_TAG in model.tags
            and model.model_id not in registered
            and (model.source_run_id in unneeded or model.source_run_id not in runs)
        ]
        kept = [run for number, run in runs.items() if number not in unneeded]
        return Retention(
            store,
            tuple(_measure(number, run.info.run_name, run.info.artifact_uri) for number, run in unneeded.items()),
            tuple(_measure(model.model_id, model.name, model.artifact_location) for model in models),
            frozenset(run.data.tags[COMMIT_TAG] for run in kept if COMMIT_TAG in run.data.tags),
            frozenset(digest for run in kept for digest in _find_data(run)),
        )


def delete(retention: Retention) -> None:
    """Permanently delete the runs and models of a review with their artifacts, as `mlflow gc` does.

    A run is first marked as deleted, then its files are deleted, and its record last. After a kill, the next review
    finds the run again.

    Raises:
        TrackingError: the store cannot be used.
    """
    with explained(retention.store):
        from mlflow import MlflowClient

        client, direct = MlflowClient(retention.store.uri), _open_directly(retention.store)
        for first in range(0, max(len(retention.runs), len(retention.models)), RUNS_AT_ONCE):
            runs = [run.id for run in retention.runs[first : first + RUNS_AT_ONCE]]
            models = [model.id for model in retention.models[first : first + RUNS_AT_ONCE]]
            for run in runs:
                client.delete_run(run)
            for model in models:
                if logged_models.get(client, model):
                    client.delete_logged_model(model)
            delete_permanently(direct, runs, models)
        for deleted in retention.runs + retention.models:
            _remove_empty_parent(deleted.place)


def require_direct(store: Store) -> None:
    """Refuse a server: its clients can mark runs as deleted, but cannot delete them permanently.

    Raises:
        TrackingError: the store is a server.
    """
    if store.uri.startswith(("http://", "https://")):
        raise TrackingError(
            f"runs are permanently deleted in a database, not through the server {store}",
            expected="MLFLOW_TRACKING_URI with the address of the server's database",
            found=str(store),
            remedy="MLFLOW_TRACKING_URI=postgresql://... pipeline gc, on a machine that reaches its artifacts too",
        )


def _find_needed(runs: "Iterable[Run]", workspace: Path, keep_runs: int) -> Iterator[str]:
    model = Outputs(workspace).model
    current = file_digest(model) if model.is_file() else None
    newest: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for run in sorted(runs, key=lambda run: -run.info.start_time):
        tags, number = run.data.tags, run.info.run_id
        if ROLE_TAG in tags:
            yield from (value for name, value in tags.items() if name == f"{EVIDENCE}run")
            yield number
        if run.info.status not in ENDED or tags.get(MODEL_TAG, "") == current:
            yield number
        if any(name.startswith(f"{LEDGER_TAG}.") for name in tags):
            yield number
        kind = newest.get(tags.get(SOURCE_TAG, ""))
        if kind is not None and len(kind) < keep_runs and run.info.lifecycle_stage == "active":
            kind.append(number)
            yield number


def _parent(run: "Run") -> str:
    return str(run.data.tags.get(PARENT_TAG, run.info.run_id))


def _all_models(store: Store, client: "MlflowClient") -> "Iterator[LoggedModel]":
    """Yield every logged model, including those marked as deleted, which MLflow's search omits."""
    yield from pages(client.search_logged_models, all_experiments(client), size=MODELS_PAGE)
    yield from find_deleted_models(_open_directly(store))


def _open_directly(store: Store) -> "SqlAlchemyStore":
    """Open MLflow's store of a database, which has more methods than its client."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(store.uri, store.artifacts)


def _find_data(run: "Run") -> Iterator[str]:
    """Yield the DVC digests in a run's tags and in its `dvc.lock` artifact: batches, outputs, evaluation."""
    for name, value in run.data.tags.items():
        if name.startswith(BATCH_TAG):
            yield name.removeprefix(BATCH_TAG)
        elif name.startswith("data.") or name == EVALUATION_TAG:
            yield value
    for stage in _read_lock(run).get("stages", {}).values():
        yield from (entry["md5"] for kind in ("deps", "outs") for entry in stage.get(kind, []) if "md5" in entry)


def _read_lock(run: "Run") -> Mapping[str, Any]:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if run.data.tags.get(SOURCE_TAG) != TRAINING:
        return {}
    try:
        file = Path(get_artifact_repository(run.info.artifact_uri).download_artifacts(LOCK_ARTIFACT))
    except (MlflowException, OSError):  # a rebuilt run has no `dvc.lock`
        return {}
    return parse_yaml(file.read_bytes()) or {}


def _remove_empty_parent(uri: str) -> None:
    """Remove the parent directory of deleted artifacts if it is local and empty."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if is_local_uri(uri):
        with contextlib.suppress(OSError):
            Path(local_file_uri_to_path(uri)).parent.rmdir()


def _measure(number: str, name: str | None, place: str) -> Unneeded:
    """Sum up the sizes of the artifacts of a run or model."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(place)

    def below(path: str | None) -> int:
        return sum(
            below(entry.path) if entry.is_dir else entry.file_size or 0 for entry in repository.list_artifacts(path)
        )

    return Unneeded(number, name or "", place, below(None))

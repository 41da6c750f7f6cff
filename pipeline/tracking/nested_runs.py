"""Runs in MLflow that belong together: a parent, and runs nested under it. The stages make others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import processes, provenance
from pipeline.tracking.experiments import experiment_id
from pipeline.tracking.queries import all_experiments, find_or_none
from pipeline.tracking.store import Store, explained, locate, open_store
from pipeline.tracking.training_runs import LARGEST_BATCH, Record


def open_run(
    experiment: str,
    name: str,
    *,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    source: str,
    parent: str | None = None,
    former: str | None = None,
) -> Record:
    """Open a run of this process, with the tags of its commit, environment and machine.

    Args:
        experiment: the dataset's name.
        source: what made it, as MLflow shows it.
        parent: id of the run that it is nested under.
        former: id of the run to continue. The store may lack both.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate()
    client = open_store(store)
    from mlflow.entities import Param

    own = {processes.PROCESS_TAG: processes.this_process(), "mlflow.source.name": source}
    with explained(store):
        processes.end_abandoned(client, all_experiments(client))
        if former and find_or_none(client.get_run, former):
            client.update_run(former, status="RUNNING")
            return _continued(store, client, former, {**own, **tags})
        about = provenance.tree_tags(provenance.read_tree(Path())) | provenance.environment_tags(Path())
        has_parent = parent and find_or_none(client.get_run, parent)
        nested = {"mlflow.parentRunId": parent} if parent and has_parent else {}
        everything = {**about, **provenance.host_tags(), **own, **nested, **tags}
        run = client.create_run(experiment_id(client, store, experiment), tags=everything, run_name=name)
        listed = [Param(key, str(value)) for key, value in params.items()]
        for first in range(0, len(listed), LARGEST_BATCH):
            client.log_batch(run.info.run_id, params=listed[first : first + LARGEST_BATCH])
        return Record(store, client, run)


def log_directory(record: Record, directory: Path) -> None:
    """Log the files of a directory as artifacts of a run.

    Raises:
        TrackingError: the store cannot be used.
    """
    with explained(record.store):
        record.client.log_artifacts(record.id, str(directory))


def _continued(store: Store, client: Any, run_id: str, tags: Mapping[str, str]) -> Record:
    record = Record(store, client, client.get_run(run_id))
    record.set_tags(tags)
    return record

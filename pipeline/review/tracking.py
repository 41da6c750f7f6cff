"""The MLflow run of a review."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.experiments import experiment_id
from pipeline.tracking.processes import PROCESS_TAG, this_process
from pipeline.tracking.store import explained, locate, open_store
from pipeline.tracking.training_runs import Record

if TYPE_CHECKING:
    from pipeline.review.labels import Review

REVIEW_TAG = "review"  # name of the review


def record_review(review: "Review", dataset: str, settings: Mapping[str, Any], items: Path) -> str:
    """Record a finished review as a run, with its accuracy, its settings and its list. Returns the run's id.

    Args:
        dataset: its name, also that of the MLflow experiment.
        settings: parameters of the models.
        items: the file with the list.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate()
    client = open_store(store)
    from mlflow.entities import Param  # after `open_store`, which sets MLflow's environment variables

    tags = {REVIEW_TAG: review.name, PROCESS_TAG: this_process(), "mlflow.source.name": "pipeline review labels"}
    with explained(store):
        run = client.create_run(experiment_id(client, store, dataset), tags=tags, run_name=f"review {review.name}")
        params = [Param(name, str(value)) for name, value in settings.items()]
        client.log_batch(run.info.run_id, params=params)
        client.log_artifact(run.info.run_id, str(items), "review")
    record = Record(store, client, run)
    for fold, accuracy in enumerate(review.fold_accuracy):
        record.log_metrics({"fold_accuracy": accuracy}, step=fold + 1)
    suspects = len(review.suspects)
    record.log_metrics(
        {"out_of_fold_accuracy": review.accuracy, "suspects": suspects, "duplicates": len(review.duplicates)}
    )
    record.end("FINISHED")
    return record.id

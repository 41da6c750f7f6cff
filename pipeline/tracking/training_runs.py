"""Training runs in MLflow: create, extend and rebuild them, and find them by their model's digest."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import table
from pipeline.files import file_digest, read_json
from pipeline.tracking import logged_models, processes, provenance
from pipeline.tracking.experiments import experiment_id
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.parent_run_id import find_parent
from pipeline.tracking.queries import all_experiments, search_runs
from pipeline.tracking.run_names import name_training
from pipeline.tracking.stage_outputs import MODEL, Outputs, dvc_digest, flatten
from pipeline.tracking.store import Store, explained, locate, open_store
from pipeline.workspace import current_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EXPERIMENT_TAG = "dvc.experiment"  # name of the DVC experiment that created the run
EVALUATION_TAG = "evaluation.md5"  # DVC's digest of the directory; set last
DIFF_ARTIFACT = "source/changes.diff"
LOCK_ARTIFACT = "source/dvc.lock"
TRAINING_ARTIFACT, EVALUATION_ARTIFACT, DATA_ARTIFACT = "training", "evaluation", "data"
SYSTEM_METRICS_SECONDS = 2
LARGEST_BATCH = 100  # params; MLflow's limit for one request


@dataclass(frozen=True)
class TrainingFacts:
    """Facts that are known when a training starts.

    Args:
        dataset: its name, also used for the MLflow experiment.
        params: resolved and flat, as in `settings.json`, from which a run can be rebuilt.
        inputs: the Parquet file of each split that is read: `train`, `validation`.
        machine: facts about the machine. Recorded as tags, because they do not define the training.
    """

    dataset: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A run in the store. Every method may raise a TrackingError."""

    store: Store
    client: "MlflowClient"
    run: "Run"

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.run.data.tags)

    def refresh(self) -> None:
        """Read the run again."""
        with explained(self.store):
            self.run = self.client.get_run(self.id)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, in one request."""
        from mlflow.entities import RunTag

        with explained(self.store):
            self.client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])
        self.refresh()

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None, **about: str
    ) -> None:
        """Log metrics in one request. `about`: their model and dataset, as in MLflow's Metric."""
        from mlflow.entities import Metric

        now = timestamp or milliseconds()
        batch = [Metric(name, float(value), now, step, **about) for name, value in metrics.items()]
        with explained(self.store):
            self.client.log_batch(self.id, metrics=batch)

    def complete(self, outputs: Outputs) -> None:
        """Add the outputs of `train`: reports, logged model, and finally the digest by which the run is found."""
        with explained(self.store):
            self.client.log_artifacts(self.id, str(outputs.training), TRAINING_ARTIFACT)
            for path in outputs.about_data:
                if path.is_dir():
                    self.client.log_artifacts(self.id, str(path), f"{DATA_ARTIFACT}/{path.name}")
                else:
                    self.client.log_artifact(self.id, str(path), DATA_ARTIFACT)
        self.logged_model(outputs)
        best = _best(outputs)
        self.log_metrics(best)
        digests = logged_models.digest_tags(outputs)
        result = f"{best['best_validation_accuracy']:.2%} {digests[MODEL_TAG][:8]}"
        # Set last: a run that has these digests is complete.
        self.set_tags({"mlflow.runName": f"{self.run.info.run_name} {result}", **digests})

    def logged_model(self, outputs: Outputs) -> "LoggedModel":
        """Return the run's logged model. Creates it from the workspace's model file if needed."""
        with explained(self.store):
            model = logged_models.find(self.client, self.run)
            if model is None:
                model = logged_models.create(self.client, self.run, outputs)
                self.refresh()
            return model

    def add_evaluation(self, outputs: Outputs) -> None:
        """Add the outputs of `evaluate`, unless the run already has this evaluation."""
        digest = dvc_digest(outputs.evaluation)
        if self.tags.get(EVALUATION_TAG) == digest:
            return
        # Without the check of the saliency: MLflow's page shows 18 charts of a run, the last ones of the validation.
        evaluation = read_json(outputs.evaluation / "metrics.json")
        figures = flatten({name: value for name, value in evaluation.items() if name != "saliency"})
        metrics = {f"test_{name}": value for name, value in figures.items() if isinstance(value, int | float)}
        passed = read_json(outputs.evaluation / "gate.json")["passed"]
        data = describe_data(outputs.split("test"), "test", file_digest(outputs.split("test"), "md5"))
        model = self.logged_model(outputs)
        with explained(self.store):
            self.client.log_inputs(self.id, [data])
            self.client.log_artifacts(self.id, str(outputs.evaluation), EVALUATION_ARTIFACT)
        about = {"dataset_name": data.dataset.name, "dataset_digest": data.dataset.digest}
        self.log_metrics(metrics, model_id=model.model_id, **about)
        verdict = {"gate": "passed" if passed else "rejected", "data.test": data.dataset.digest}
        self.set_tags(verdict | {EVALUATION_TAG: digest})

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        with explained(self.store):
            self.client.set_terminated(self.id, status)
        self.refresh()


def _best(outputs: Outputs) -> dict[str, float]:
    """Return the metrics of the epoch whose weights are kept. MLflow shows those of the last epoch."""
    number = outputs.settings()["best_epoch"]
    epoch = next(epoch for epoch in outputs.history() if epoch["epoch"] == number)
    kept = {f"best_{name}": epoch[name] for name in ("validation_accuracy", "validation_loss")}
    return {"best_epoch": number} | kept


def open_record(facts: TrainingFacts) -> Record:
    """Create the run of a training that starts now, with its code, environment, machine, data and params."""
    workspace = Path()
    tree = provenance.read_tree(workspace)  # first, because the user may continue to edit files
    tags = provenance.tree_tags(tree) | provenance.environment_tags(workspace) | provenance.host_tags()
    if experiment := current_experiment():
        tags[EXPERIMENT_TAG] = experiment
    digests = {name: file_digest(path, "md5") for name, path in facts.inputs.items()}
    tags |= provenance.data_tags(Outputs(workspace), digests)
    record = _create(workspace, facts, digests, tags | {processes.PROCESS_TAG: processes.this_process()})
    with explained(record.store):
        if tree and tree.diff:
            log_bytes(record.client, record.id, tree.diff, DIFF_ARTIFACT)
        if (workspace / "dvc.lock").is_file():
            record.client.log_artifact(record.id, "dvc.lock", "source")
    return record


def monitor_system(record: Record) -> "SystemMetricsMonitor":
    """Log the machine's load to a run, until `finish` is called on the returned monitor."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(record.id, SYSTEM_METRICS_SECONDS, tracking_uri=record.store.uri)
    monitor.start()
    return monitor


def find(client: "MlflowClient", digest: str) -> "Run | None":
    """Find the newest complete run that trained a model, by the model's SHA-256. None if there is none."""
    runs = search_runs(client, f"tags.`{MODEL_TAG}` = '{digest}' and attributes.status = 'FINISHED'")
    return max(runs, key=lambda run: int(run.info.start_time), default=None)


def find_or_rebuild(outputs: Outputs) -> Record:
    """Find the run that trained a workspace's model. If the store does not have it, rebuild it from the stage outputs.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate(outputs.root)
    client = open_store(store)
    with explained(store):
        run = find(client, file_digest(outputs.model))
    return Record(store, client, run) if run else _rebuild(outputs)


def _rebuild(outputs: Outputs) -> Record:
    """Rebuild a run from stage outputs. It has no tags of code, environment and machine, because they are unknown."""
    inputs = {name: outputs.split(name) for name in ("train", "validation")}
    locked = outputs.locked("train") if outputs.are_of("train", MODEL) else {}
    digests = {
        name: locked.get(f"data/splits/{name}.parquet") or file_digest(path, "md5") for name, path in inputs.items()
    }
    params = {name: value for name, value in flatten(outputs.settings()).items() if name != "best_epoch"}
    facts = TrainingFacts(table.read_dataset(inputs["train"]).name, params, inputs)
    origin = provenance.data_tags(outputs, digests)
    record = _create(outputs.root, facts, digests, {"restored": "true", **origin})
    if origin:
        with explained(record.store):
            record.client.log_artifact(record.id, str(outputs.root / "dvc.lock"), "source")
    for epoch in outputs.history():
        record.log_metrics({name: value for name, value in epoch.items() if name != "epoch"}, step=int(epoch["epoch"]))
    record.complete(outputs)
    record.end("FINISHED")
    return record


def _create(workspace: Path, facts: TrainingFacts, digests: Mapping[str, str], tags: Mapping[str, str]) -> Record:
    store = locate(workspace)
    client = open_store(store)
    from mlflow.entities import Param  # after `open_store`, which sets MLflow's environment variables

    with explained(store):
        processes.end_abandoned(client, all_experiments(client))
        parent = find_parent(client)
        experiment = parent.info.experiment_id if parent else experiment_id(client, store, facts.dataset)
        tags = {
            **tags,
            **{f"data.{name}": digest for name, digest in digests.items()},
            **{f"host.{name}": _as_text(value) for name, value in facts.machine.items()},
            **({"mlflow.parentRunId": parent.info.run_id} if parent else {}),
            "mlflow.source.name": "pipeline.stages.train",
            "mlflow.source.type": "LOCAL",
        }
        name = name_training(workspace, facts.params, tags.get(EXPERIMENT_TAG))
        run = client.create_run(experiment, tags=tags, run_name=name)
        params = [Param(name, _as_text(value)) for name, value in facts.params.items()]
        for first in range(0, len(params), LARGEST_BATCH):
            client.log_batch(run.info.run_id, params=params[first : first + LARGEST_BATCH])
        client.log_inputs(
            run.info.run_id, [describe_data(path, name, digests[name]) for name, path in facts.inputs.items()]
        )
        return Record(store, client, client.get_run(run.info.run_id))


def describe_data(path: Path, split: str, digest: str) -> "DatasetInput":
    """Describe a split as MLflow's dataset input. The digest is of the whole file; MLflow uses 10,000 numbers only."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = table.read_dataset(path)
    images = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *dataset.shape]}}
    labels = {"type": "tensor", "tensor-spec": {"dtype": "uint16", "shape": [-1]}}
    schema = {"mlflow_tensorspec": {"features": json.dumps([images]), "targets": json.dumps([labels])}}
    entity = Dataset(
        name=f"{dataset.name}-{split}",
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": f"data/splits/{path.name}"}),
        schema=json.dumps(schema),
        profile=json.dumps({"images": table.count_rows(path), "classes": len(dataset.classes)}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", split)])


def log_bytes(client: "MlflowClient", run_id: str, content: bytes, artifact: str) -> None:
    """Log bytes as an artifact. MLflow's `log_text` accepts text only, and a diff may contain any bytes."""
    directory, name = artifact.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / name).write_bytes(content)
        client.log_artifact(run_id, f"{scratch}/{name}", directory)


def milliseconds() -> int:
    """Return the current time in MLflow's unit, milliseconds since 1970."""
    return int(time.time() * 1000)


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else str(value)

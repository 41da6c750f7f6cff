"""Training runs as they stand in the store: made, added to, found by the digest of their model, rebuilt."""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import table
from pipeline.files import file_digest, read_json
from pipeline.tracking import logged_models, processes, provenance
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.outputs import MODEL, Outputs, dvc_digest, flatten
from pipeline.tracking.queries import all_experiments, search_runs
from pipeline.tracking.store import Store, experiment_id, explained, locate, open_store
from pipeline.workspace import current_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EXPERIMENT_TAG = "dvc.experiment"  # the name of the experiment that made the run
EVALUATION_TAG = "evaluation.md5"  # DVC's digest of the directory; set last as well
PARENT_VARIABLE = "PIPELINE_PARENT_RUN"
DIFF_ARTIFACT = "source/changes.diff"
LOCK_ARTIFACT = "source/dvc.lock"
TRAINING_ARTIFACT, EVALUATION_ARTIFACT, DATA_ARTIFACT = "training", "evaluation", "data"
SYSTEM_METRICS_SECONDS = 2
LARGEST_BATCH = 100  # params that MLflow takes in one request


@dataclass(frozen=True)
class TrainingFacts:
    """What is known when a training starts.

    Args:
        dataset: its name, which becomes the MLflow experiment's.
        params: flat and resolved: `settings.json`, flattened, so that a run can be rebuilt from there.
        inputs: the Parquet file of each split that is read: `train`, `validation`.
        machine: what the training runs on. It becomes tags, because it tells runs apart and does not define them.
    """

    dataset: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A run in the store, and what can be added to it. Every method may raise a TrackingError."""

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
        """Record figures, in one request. `about`: the model and the dataset they belong to, as in MLflow's Metric."""
        from mlflow.entities import Metric

        now = timestamp or milliseconds()
        batch = [Metric(name, float(value), now, step, **about) for name, value in metrics.items()]
        with explained(self.store):
            self.client.log_batch(self.id, metrics=batch)

    def complete(self, outputs: Outputs) -> None:
        """Add what `train` put out: reports, logged model, and at last the digest by which the run is found."""
        with explained(self.store):
            self.client.log_artifacts(self.id, str(outputs.training), TRAINING_ARTIFACT)
            for path in outputs.about_data:
                if path.is_dir():
                    self.client.log_artifacts(self.id, str(path), f"{DATA_ARTIFACT}/{path.name}")
                else:
                    self.client.log_artifact(self.id, str(path), DATA_ARTIFACT)
        self.logged_model(outputs)
        self.log_metrics(_best(outputs))
        digest = file_digest(outputs.model)
        # Set last: a run that has this digest is complete.
        self.set_tags({"mlflow.runName": f"{self.run.info.run_name} {digest[:8]}", MODEL_TAG: digest})

    def logged_model(self, outputs: Outputs) -> "LoggedModel":
        """The model that the run put out, kept from the workspace's file unless it already is."""
        with explained(self.store):
            model = logged_models.find(self.client, self.run)
            if model is None:
                model = logged_models.create(self.client, self.run, outputs)
                self.refresh()
            return model

    def add_evaluation(self, outputs: Outputs) -> None:
        """Add what `evaluate` put out, unless this very evaluation is there."""
        digest = dvc_digest(outputs.evaluation)
        if self.tags.get(EVALUATION_TAG) == digest:
            return
        figures = flatten(read_json(outputs.evaluation / "metrics.json"))
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
    """The figures of the epoch whose weights are kept: a run's last ones are those of its last epoch."""
    number = outputs.settings()["best_epoch"]
    epoch = next(epoch for epoch in outputs.history() if epoch["epoch"] == number)
    kept = {f"best_{name}": epoch[name] for name in ("validation_accuracy", "validation_loss")}
    return {"best_epoch": number} | kept


def open_record(facts: TrainingFacts) -> Record:
    """A new run for a training that starts now: its code, environment, machine, data and params."""
    workspace = Path()
    tree = provenance.read_tree(workspace)  # before all else: somebody may go on editing
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
    """Sample the machine's load into a run, until `finish` is called on the answer."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(record.id, SYSTEM_METRICS_SECONDS, tracking_uri=record.store.uri)
    monitor.start()
    return monitor


def find(client: "MlflowClient", digest: str) -> "Run | None":
    """The newest complete run that made a model."""
    runs = search_runs(client, f"tags.`{MODEL_TAG}` = '{digest}' and attributes.status = 'FINISHED'")
    return max(runs, key=lambda run: int(run.info.start_time), default=None)


def find_or_rebuild(outputs: Outputs) -> Record:
    """The run that made a workspace's model, rebuilt from the stages' outputs if the store has never seen it.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate(outputs.root)
    client = open_store(store)
    with explained(store):
        run = find(client, file_digest(outputs.model))
    return Record(store, client, run) if run else _rebuild(outputs)


def _rebuild(outputs: Outputs) -> Record:
    """The code, environment and machine of that training are not known any more, so nothing is said of them."""
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
    from mlflow.entities import Param  # not before the store is open: that sets up MLflow

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
        name = str(facts.params.get("preset", "train"))
        if EXPERIMENT_TAG in tags:
            name = f"experiment {tags[EXPERIMENT_TAG]}: {name}"
        run = client.create_run(experiment, tags=tags, run_name=name)
        params = [Param(name, _as_text(value)) for name, value in facts.params.items()]
        for first in range(0, len(params), LARGEST_BATCH):
            client.log_batch(run.info.run_id, params=params[first : first + LARGEST_BATCH])
        client.log_inputs(
            run.info.run_id, [describe_data(path, name, digests[name]) for name, path in facts.inputs.items()]
        )
        return Record(store, client, client.get_run(run.info.run_id))


def find_parent(client: "MlflowClient") -> "Run | None":
    """The flow's run, when this process is a stage of one and the store still has it."""
    from mlflow.exceptions import MlflowException

    if not (parent := os.environ.get(PARENT_VARIABLE)):
        return None
    try:
        return client.get_run(parent)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        print(f"the flow's run {parent} is not in the tracking store: recording without it", flush=True)
        return None


def describe_data(path: Path, split: str, digest: str) -> "DatasetInput":
    """A split as a dataset input, with the digest of its whole file. MLflow's own takes the first 10,000 numbers."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = table.read_dataset(path)
    images = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, dataset.height, dataset.width]}}
    labels = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1]}}
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
    """Keep bytes as they are. MLflow's `log_text` takes text only, and a diff may hold anything."""
    directory, name = artifact.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / name).write_bytes(content)
        client.log_artifact(run_id, f"{scratch}/{name}", directory)


def milliseconds() -> int:
    """Now, as MLflow counts."""
    return int(time.time() * 1000)


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else str(value)

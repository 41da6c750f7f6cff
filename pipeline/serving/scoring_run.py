"""The MLflow run of a batch scoring: what was scored, by which version, and the drift of what it saw."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import features, table
from pipeline.data.drift_features import drift_features
from pipeline.evaluation.metrics import class_probabilities
from pipeline.files import file_digest
from pipeline.models import interpreter
from pipeline.models.contract import LITERT_FILE, Contract
from pipeline.serving.scoring_inputs import ScoringInput
from pipeline.tracking import processes
from pipeline.tracking.experiments import SCORING, experiment_id
from pipeline.tracking.queries import all_experiments
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import explained, locate, open_store
from pipeline.tracking.training_runs import Record

SHOWN_ERRORS = 5
REFERENCE_IMAGES = 2_000  # of the validation split, at most
PREDICTED, CONFIDENCE = "predicted", "confidence"


@dataclass(frozen=True)
class ScoringModel:
    """A registered version with its files."""

    name: str
    version: str
    tags: Mapping[str, str]  # of the version
    contract: Contract
    folder: Path  # with model.tflite and contract.json


@dataclass
class Seen:
    """What a scoring saw."""

    model: ScoringModel
    classes: tuple[str, ...]
    left_out: Mapping[str, int]  # files of the input that are no pictures, by kind
    rows: int = 0
    failed: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)  # id and error of the first failed pictures
    counts: np.ndarray = field(init=False)  # int [classes], pictures by predicted class
    confidences: list[float] = field(default_factory=list)  # of a sample
    features: dict[str, list[float]] = field(default_factory=dict)  # of a sample, by name
    seconds: float = 0.0  # of reading, predicting and writing
    drift: dict[str, float] | None = None  # effect sizes; None: the validation images of the model are not here

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.classes), int)

    def describe(self) -> dict[str, Any]:
        """Describe the scoring for programs."""
        about = {"name": self.model.name, "version": self.model.version, "sha256": self.model.contract.litert_sha256}
        return {
            **about,
            "pictures": self.rows,
            "failed": self.failed,
            "errors": dict(self.errors),
            "left_out": dict(self.left_out),
            "predicted": dict(zip(self.classes, self.counts.tolist(), strict=True)),
            "drift": self.drift,
            "seconds": round(self.seconds, 3),
        }

    def describe_drift(self) -> str:
        """Describe the largest difference to the validation images in one sentence."""
        if self.drift is None:
            return "drift: unknown, because the validation images of this version are not in the workspace"
        largest = sorted(self.drift.items(), key=lambda effect: -effect[1])[:3]
        found = ", ".join(f"{name} {effect:.2f}" for name, effect in largest)
        return f"drift from the validation images, 0 to 1, the largest effects: {found}"

    def add(self, rows: pa.Table, features: Mapping[str, Sequence[float]], stride: int) -> None:
        """Add a part: its rows and the features of its sampled images. stride: between confidences to keep."""
        self.rows += len(rows)
        for found in pc.value_counts(rows.column("label").drop_null()).to_pylist():
            self.counts[found["values"]] += found["counts"]
        self.confidences += rows.column("probability").drop_null()[::stride].to_pylist()
        for name, values in features.items():
            self.features.setdefault(name, []).extend(values)
        failed = len(rows) - rows.column("error").null_count
        if failed and len(self.errors) < SHOWN_ERRORS:
            wrong = rows.select(["id", "error"]).filter(rows.column("error").is_valid()).to_pylist()
            self.errors += [(row["id"], row["error"]) for row in wrong[: SHOWN_ERRORS - len(self.errors)]]
        self.failed += failed


@contextmanager
def record_scoring(workspace: Path, model: ScoringModel, source: Path, found: ScoringInput) -> Iterator[Seen]:
    """Record the scoring of the block as an MLflow run in the experiment `NAME-scoring`.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate(workspace)
    client = open_store(store)
    tags = {
        processes.PROCESS_TAG: processes.this_process(),
        "mlflow.source.name": "pipeline score",
        "input": str(source.resolve()),
        "input.form": found.form,
        "input.fingerprint": found.fingerprint,
        "scored.name": model.name,
        "scored.version": model.version,
        "scored.sha256": model.contract.litert_sha256,
    }
    with explained(store):
        processes.end_abandoned(client, all_experiments(client))
        experiment = experiment_id(client, store, f"{model.name}-scoring", SCORING, model.name)
        record = Record(store, client, client.create_run(experiment, tags=tags, run_name=source.name))
    seen, status = Seen(model, model.contract.create_task().classes, found.left_out), "FAILED"
    try:
        yield seen
        seen.drift = _compare(workspace, seen)
        drift = {f"drift/{name}": effect for name, effect in (seen.drift or {}).items()}
        counts = {"pictures": seen.rows, "failed": seen.failed, "pictures_per_second": seen.rows / seen.seconds}
        record.log_metrics(counts | drift)
        shares = (seen.counts / max(1, seen.counts.sum())).round(6).tolist()
        with explained(store):
            content = {"predicted": dict(zip(seen.classes, shares, strict=True)), "drift": seen.drift}
            client.log_dict(record.id, content, "scoring.json")
        status = "FINISHED"
    finally:
        record.end(status)


def _compare(workspace: Path, seen: Seen) -> dict[str, float] | None:
    """Compare what was seen with the validation images that the model was chosen by. Returns effect sizes, 0 to 1.

    They are those of the drift monitor: the Jensen-Shannon distance of the shares of the predicted classes, and for
    features and confidence the statistic of the Kolmogorov-Smirnov test. None if the images are not in the workspace.
    """
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import ks_2samp

    split = Outputs(workspace).split("validation")
    if not split.is_file() or file_digest(split, "md5") != seen.model.tags.get("data.validation"):
        return None
    images, labels = table.read_images(split)
    rows = np.linspace(0, len(images) - 1, min(REFERENCE_IMAGES, len(images))).astype(int)
    measured = features.measure([(images[rows], labels[rows], table.strings([""] * len(rows)))])
    model = interpreter.load(seen.model.folder / LITERT_FILE, seen.model.contract)
    probabilities = class_probabilities(model.predict(images[rows]))
    counts = np.bincount(probabilities.argmax(axis=1), minlength=len(seen.classes))
    effects = {PREDICTED: float(jensenshannon(seen.counts / seen.counts.sum(), counts / counts.sum(), base=2))}
    reference = (drift_features(measured) if measured else {}) | {CONFIDENCE: probabilities.max(axis=1)}
    for name, values in (seen.features | {CONFIDENCE: seen.confidences}).items():
        sided = "greater" if name == CONFIDENCE else "two-sided"  # a higher confidence is no drift
        effects[name] = float(ks_2samp(values, reference[name], alternative=sided, method="asymp").statistic)
    return {name: round(effect, 4) for name, effect in effects.items()}

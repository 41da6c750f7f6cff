"""Runs that are reproduced: read from MLflow what a version was made from, and write the verdict back."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.audit.lineage import REPRODUCTION_REASON_TAG, REPRODUCTION_TAG, Lineage, outs, select
from pipeline.audit.verdict import Verdict
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.outputs import EVALUATION, MODEL, TRAINING, Outputs, dvc_digest
from pipeline.tracking.provenance import COMMIT_TAG
from pipeline.tracking.records import (
    DATA_ARTIFACT,
    DIFF_ARTIFACT,
    EVALUATION_ARTIFACT,
    EVALUATION_TAG,
    TRAINING_ARTIFACT,
    find,
)
from pipeline.tracking.store import Store, explained, open_store

VERDICT_ARTIFACT, LOG_ARTIFACT = "reproduction/verdict.json", "reproduction/log.txt"
# Outputs that a run keeps a copy of, and the artifact that holds it.
COPIES = {
    TRAINING: TRAINING_ARTIFACT,
    EVALUATION: EVALUATION_ARTIFACT,
    "reports/validation.json": f"{DATA_ARTIFACT}/validation.json",
    "reports/split.json": f"{DATA_ARTIFACT}/split.json",
}
# Tags that describe what a run was computed on, as far as that may change the last bits of a model.
MACHINE_TAGS = (
    "host.bfloat16", "host.computed_in", "host.cpu", "host.cpu_features", "host.device", "host.features", "host.onednn",
    "host.replicas", "host.threads", "host.xla",
    "version.keras", "version.numpy", "version.python", "version.tensorflow",
)  # fmt: skip


@dataclass(frozen=True)
class RecordedRun:
    """The code and the outputs of a run, as far as they were recorded."""

    diff: bytes  # uncommitted changes
    outputs: Mapping[str, Mapping[str, str]]  # digest by path, by stage: MD5 as DVC has it, SHA-256 of the model
    artifacts: Path  # the directory that holds the run's artifacts

    def find_copy(self, output: str) -> Path:
        """Path of the recorded copy of an output. It does not exist if the run keeps none."""
        return self.artifacts / COPIES.get(output, output)


def read_recorded_run(lineage: Lineage, directory: Path) -> RecordedRun:
    """Read the run of a version. Downloads its artifacts to `directory`.

    Raises:
        TrackingError: the code or the model's digest was not recorded, or the store cannot be used.
    """
    tags, digest = lineage.tags, lineage.version.tags.get(MODEL_TAG)
    if COMMIT_TAG not in tags or not digest or tags.get("git.left_out") == ".":
        raise TrackingError(
            f"cannot reproduce {lineage.label}: its run does not record what it was made from",
            expected="a commit, a diff that was small enough to be kept, and the digest of the model file",
            found="no digest" if not digest else "no diff: it was too large" if COMMIT_TAG in tags else "no commit",
            remedy="train the model again from a commit: pipeline run",
        )
    with explained(lineage.store):
        lineage.client.download_artifacts(lineage.run.info.run_id, "", str(directory))
        stages = lineage.data_stages
    diff, training = directory / DIFF_ARTIFACT, directory / TRAINING_ARTIFACT
    splits = {f"data/splits/{name}.parquet": tags.get(f"data.{name}") for name in ("train", "validation", "test")}
    outputs = {
        "split": {path: md5 for path, md5 in splits.items() if md5},
        **{stage: outs(entry) for stage, entry in stages.items()},
        "train": {MODEL: digest, **({TRAINING: dvc_digest(training)} if training.is_dir() else {})},
        "evaluate": {EVALUATION: tags[EVALUATION_TAG]} if EVALUATION_TAG in tags else {},
    }
    return RecordedRun(diff.read_bytes() if diff.is_file() else b"", outputs, directory)


def read_machine(checkout: Path) -> dict[str, str]:
    """Read what the model of a checkout was computed on from the store in that checkout. Empty if there is no model."""
    model, database = Outputs(checkout).model, checkout / "mlflow.db"
    if not (model.is_file() and database.is_file()):
        return {}
    store = Store(f"sqlite:///{database}", None, database)
    client = open_store(store)
    with explained(store):
        run = find(client, file_digest(model))
    return select(run.data.tags, MACHINE_TAGS) if run else {}


def record_verdict(lineage: Lineage, verdict: Verdict, log: str) -> None:
    """Tag a version with the verdict on its reproduction, and keep it with the log in the run. Replaces an earlier one.

    Raises:
        TrackingError: the store cannot be used.
    """
    client, version, run = lineage.client, lineage.version, lineage.run.info.run_id
    content = asdict(verdict) | {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    tags = {REPRODUCTION_REASON_TAG: verdict.reason, REPRODUCTION_TAG: verdict.outcome}
    with explained(lineage.store):
        client.log_dict(run, content, VERDICT_ARTIFACT)
        client.log_text(run, log + "\n", LOG_ARTIFACT)
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value)

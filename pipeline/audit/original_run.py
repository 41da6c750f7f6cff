"""MLflow runs of reproduced versions: read the recorded code and outputs, and write the verdict."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.audit.lineage import REPRODUCTION_REASON_TAG, REPRODUCTION_TAG, Lineage, outs, select
from pipeline.audit.verdict import Verdict
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.tracking.logged_models import MODEL_TAG, OUTPUT_PATHS
from pipeline.tracking.provenance import COMMIT_TAG
from pipeline.tracking.stage_outputs import EVALUATION, MODEL, TRAINING, Outputs, dvc_digest
from pipeline.tracking.store import Store, explained, open_store
from pipeline.tracking.training_runs import (
    DATA_ARTIFACT,
    DIFF_ARTIFACT,
    EVALUATION_ARTIFACT,
    EVALUATION_TAG,
    TRAINING_ARTIFACT,
    find,
)

VERDICT_ARTIFACT, LOG_ARTIFACT = "reproduction/verdict.json", "reproduction/log.txt"
# Outputs that a run has a copy of, and the artifact with the copy.
COPIES = {
    TRAINING: TRAINING_ARTIFACT,
    EVALUATION: EVALUATION_ARTIFACT,
    "reports/validation.json": f"{DATA_ARTIFACT}/validation.json",
    "reports/split.json": f"{DATA_ARTIFACT}/split.json",
}
# Tags of machine and libraries that may change the last bits of a model.
MACHINE_TAGS = (
    "host.bfloat16", "host.computed_in", "host.cpu", "host.cpu_features", "host.device", "host.features", "host.onednn",
    "host.replicas", "host.threads", "host.xla",
    "version.ai-edge-litert", "version.keras", "version.numpy", "version.python", "version.tensorflow",
)  # fmt: skip


@dataclass(frozen=True)
class RecordedRun:
    """The code and the outputs of a run, as far as they were recorded."""

    diff: bytes  # uncommitted changes
    outputs: Mapping[str, Mapping[str, str]]  # by stage, digest by path: DVC's MD5, but SHA-256 for the model's files
    artifacts: Path  # directory of the run's artifacts

    def find_copy(self, output: str) -> Path:
        """Return the path of the recorded copy of an output. The path does not exist if the run has no copy."""
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
        "train": {
            # The tags of the run: a version that was exported later has files that its commit does not write.
            **{path: tags[tag] for tag, path in OUTPUT_PATHS.items() if tag in tags},
            MODEL: digest,
            **({TRAINING: dvc_digest(training)} if training.is_dir() else {}),
        },
        "evaluate": {EVALUATION: tags[EVALUATION_TAG]} if EVALUATION_TAG in tags else {},
    }
    return RecordedRun(diff.read_bytes() if diff.is_file() else b"", outputs, directory)


def read_machine(checkout: Path) -> dict[str, str]:
    """Read the host and version tags of a checkout's model from the checkout's store. Empty if there is no model."""
    model, database = Outputs(checkout).model, checkout / "mlflow.db"
    if not (model.is_file() and database.is_file()):
        return {}
    store = Store(f"sqlite:///{database}", None, database)
    client = open_store(store)
    with explained(store):
        run = find(client, file_digest(model))
    return select(run.data.tags, MACHINE_TAGS) if run else {}


def record_verdict(lineage: Lineage, verdict: Verdict, log: str) -> None:
    """Set a version's tags to the verdict, and log it with the reproduction's log to the run. Replaces an earlier one.

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

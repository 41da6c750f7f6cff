"""What a run tells that is needed to make its model again, and what the run is told of the attempt."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import TrackingError
from pipeline.files import parse_yaml
from pipeline.reports.reproduction import Verdict
from pipeline.tracking.chain import REPRODUCTION_REASON_TAG, REPRODUCTION_TAG, Traced, all_runs
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.outputs import EVALUATION, MODEL, TRAINING, dvc_digest
from pipeline.tracking.records import (
    DATA_ARTIFACT,
    DIFF_ARTIFACT,
    EVALUATION_ARTIFACT,
    EVALUATION_TAG,
    LOCK_ARTIFACT,
    TRAINING_ARTIFACT,
)
from pipeline.tracking.store import Store, explained, open_store

LARGEST_TAG = 5000  # characters
VERDICT_ARTIFACT = "reproduction/verdict.json"
LOG_ARTIFACT = "reproduction/log.txt"
# Tags of a run that say on what it was computed, as far as that may change the last bits.
MACHINE_TAGS = (
    "host.bfloat16", "host.computed_in", "host.cpu", "host.cpu_features", "host.device", "host.features", "host.onednn",
    "host.replicas", "host.threads", "host.xla",
    "version.keras", "version.numpy", "version.python", "version.tensorflow",
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """What a version was made from, and what its stages put out."""

    commit: str
    diff: bytes
    left_out: str  # files that neither holds
    lock: bytes  # `dvc.lock`; empty when it does not tell of this version's data
    outputs: Mapping[str, Mapping[str, str]]  # digest by path, by stage: MD5 as DVC has it, SHA-256 of the model
    machine: Mapping[str, str]
    directory: Path  # below which those outputs stand that the run keeps, where a workspace has them

    def read_by(self, stage: str) -> dict[str, str]:
        """MD5 by path of what a stage read."""
        stages = parse_yaml(self.lock).get("stages", {}) if self.lock else {}
        return {entry["path"]: entry.get("md5", "") for entry in stages.get(stage, {}).get("deps", ())}


def read_origin(traced: Traced, directory: Path) -> Origin:
    """Read it from the run, whose reports are copied below `directory`.

    Raises:
        TrackingError: the run does not say what its code or its model was.
    """
    tags = traced.tags
    left_out = tags.get("git.left_out", "")
    digest = traced.version.tags.get(MODEL_TAG)
    if not (traced.commit and digest) or left_out == ".":
        raise TrackingError(
            f"the record of {traced.label} does not say what it was made from",
            expected="a commit, a diff that is not too large to keep, and the digest of the model file",
            found="no digest" if not digest else "a diff too large" if traced.commit else "no commit",
            remedy="train it anew from a commit: its run then says all that is needed",
        )
    with explained(traced.store):
        for artifact, path in {TRAINING_ARTIFACT: TRAINING, EVALUATION_ARTIFACT: EVALUATION}.items():
            _copy(traced, artifact, directory / path)
        for name in ("validation.json", "split.json"):
            _copy(traced, f"{DATA_ARTIFACT}/{name}", directory / "reports" / name)
        diff, lock = _read(traced, DIFF_ARTIFACT), _read(traced, LOCK_ARTIFACT)
    stages = traced.lock()
    outputs: dict[str, dict[str, str]] = {
        stage: {out["path"]: out["md5"] for out in entry["outs"]} for stage, entry in stages.items()
    }
    if "split" not in outputs:
        splits = ("train", "validation", "test")
        outputs["split"] = {
            f"data/splits/{name}.parquet": tags[f"data.{name}"] for name in splits if f"data.{name}" in tags
        }
    outputs["train"] = {MODEL: digest, TRAINING: dvc_digest(directory / TRAINING)}
    if EVALUATION_TAG in tags:
        outputs["evaluate"] = {EVALUATION: tags[EVALUATION_TAG]}
    machine = {name: tags[name] for name in MACHINE_TAGS if name in tags}
    return Origin(traced.commit, diff, left_out, lock if stages else b"", outputs, machine, directory)


def machine_of(workspace: Path) -> dict[str, str]:
    """On what the newest training was computed that a workspace's own default store knows; empty when it knows none."""
    database = workspace / "mlflow.db"
    if not database.is_file():
        return {}
    store = Store(f"sqlite:///{database}", None, database)
    client = open_store(store)
    with explained(store):
        runs = all_runs(client, f"tags.`{MODEL_TAG}` LIKE '%'").values()
    newest = max(runs, key=lambda run: run.info.start_time, default=None)
    return {name: newest.data.tags[name] for name in MACHINE_TAGS if name in newest.data.tags} if newest else {}


def record_reproduction(traced: Traced, verdict: Verdict, log: str) -> None:
    """Say on a version, and in its run, what its reproduction came to. A later one replaces it.

    Raises:
        TrackingError: the store cannot be used.
    """
    name, number, run = traced.version.name, traced.version.version, traced.run.info.run_id
    content = asdict(verdict) | {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with explained(traced.store):
        traced.client.log_text(run, json.dumps(content, indent=2, ensure_ascii=False) + "\n", VERDICT_ARTIFACT)
        traced.client.log_text(run, log + "\n", LOG_ARTIFACT)
        tags = {REPRODUCTION_REASON_TAG: verdict.reason[:LARGEST_TAG], REPRODUCTION_TAG: verdict.outcome}
        for key, value in tags.items():
            traced.client.set_model_version_tag(name, number, key, value)


def _copy(traced: Traced, artifact: str, target: Path) -> None:
    """Put an artifact where a workspace has it; nothing where the run keeps none."""
    with traced.artifact(artifact) as path:
        if path:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def _read(traced: Traced, artifact: str) -> bytes:
    with traced.artifact(artifact) as path:
        return path.read_bytes() if path else b""

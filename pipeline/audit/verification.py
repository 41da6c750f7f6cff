"""Verification of the registry, the artifact store, the workspace's outputs, `dvc.lock` and DVC's cache by digest.

No model is loaded, so an altered model file is found before it is executed.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import file_digest, read_json
from pipeline.redaction import without_password
from pipeline.tracking import dvc_integrity, logged_models
from pipeline.tracking.logged_models import MODEL_FILES, MODEL_TAG, OUTPUT_PATHS
from pipeline.tracking.queries import all_aliases, all_runs, all_versions
from pipeline.tracking.stage_outputs import EVALUATION, MODEL, QUANTIZED, REGISTRATION, TRAINING, Outputs, dvc_digest
from pipeline.tracking.store import Store, explained, locate, open_store
from pipeline.tracking.store_errors import is_of_store
from pipeline.tracking.training_runs import EVALUATION_ARTIFACT, EVALUATION_TAG, find

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Finding:
    """A mismatch between two records, or between a record and a file."""

    subject: str  # `fashion-mnist version 3`, `models/model.keras`
    problem: str
    expected: str
    found: str
    remedy: str


@dataclass(frozen=True)
class Verification:
    """The result of a verification: the compared items and the findings."""

    versions: int
    objects: int  # of DVC's cache
    findings: tuple[Finding, ...]


def verify(
    workspace: Path, *, fast: bool = False, track: Callable[[Sequence[Path]], Iterable[Path]] = iter
) -> Verification:
    """Compare every version of every registered model, the outputs in a workspace, and DVC's cache.

    Every file is read once.

    Args:
        fast: leave out the data, and the cache.
        track: iterates over the files of the cache and shows the progress.

    Raises:
        TrackingError: the store cannot be used.
        WorkspaceError: `dvc.lock` or DVC's settings cannot be read.
    """
    store, outputs = locate(workspace), Outputs(workspace)
    client = open_store(store)
    with explained(store):
        runs, versions, aliases = all_runs(client, ""), all_versions(client), all_aliases(client)
        findings: list[Finding] = []
        for version in versions:
            names = aliases.pop((version.name, str(version.version)), ())
            findings += _check_version(client, outputs, version, runs.get(version.run_id), names)
        findings += _check_dangling_aliases(aliases)
        findings += _check_workspace(client, store, outputs, versions)
    objects = [] if fast else dvc_integrity.find_objects(workspace)
    if not fast:
        findings += _check_data(outputs)
        findings += _check_cache(track(objects), outputs)
    return Verification(len(versions), len(objects), tuple(findings))


def _check_version(
    client: "MlflowClient", outputs: Outputs, version: "ModelVersion", run: "Run | None", aliases: Sequence[str]
) -> Iterator[Finding]:
    subject = f"{version.name} version {version.version}" + (f" ({', '.join(aliases)})" if aliases else "")
    digest = version.tags.get(MODEL_TAG)
    if not digest:
        yield Finding(
            subject,
            "its model file cannot be checked, because it has no recorded digest",
            expected=f"a tag {MODEL_TAG}",
            found="none",
            remedy=f"if the pipeline did not register it, delete it: MLflow's page of {version.name}",
        )
        return
    yield from _check_model_files(client, outputs, version, subject, is_champion="champion" in aliases)
    yield from _check_logged_model(client, str(version.source).rpartition("/")[2], subject, digest)
    if run is None or run.info.lifecycle_stage != "active":
        yield Finding(
            subject,
            "its run is gone, and with it the record of its code and data",
            expected=f"run {version.run_id}",
            found="none, or a deleted one",
            remedy=f"mlflow runs restore --run-id {version.run_id}; or, in the workspace of its outputs: pipeline sync",
        )
        return
    yield from _check_model_tag(subject, "its run made another model", digest, run.data.tags, f"run {run.info.run_id}")
    yield from _check_evaluation(client, run, subject)


def _check_model_files(
    client: "MlflowClient", outputs: Outputs, version: "ModelVersion", subject: str, *, is_champion: bool
) -> Iterator[Finding]:
    """Check the model files of a version: the one that MLflow loads, and those that are served."""
    folder = client.get_model_version_download_uri(version.name, version.version)
    rollback = "pipeline rollback --reason 'its model file was altered'; " if is_champion else ""
    for tag, file in MODEL_FILES.items():
        if not (digest := version.tags.get(tag)):
            continue  # registered before there were contracts
        found, problem = _download_digest(f"{folder}/{file}")
        if found == digest:
            continue
        path = OUTPUT_PATHS[tag]
        if (outputs.root / path).is_file() and file_digest(outputs.root / path) == digest:
            repair = f"copy {path} to that place: it is the registered file"
        else:
            repair = f"try to make it again: pipeline reproduce {version.version} --model {version.name}"
        yield Finding(
            subject,
            f"the model file {Path(file).name} in the artifact store is not the one that was registered",
            expected=f"SHA-256 {digest} at {folder}/{file}",
            found=found or problem,
            remedy=f"do not load it; {rollback}{repair}",
        )


def _check_logged_model(client: "MlflowClient", model_id: str, subject: str, digest: str) -> Iterator[Finding]:
    model = logged_models.get(client, model_id)
    if model is None:
        remedy = "in the workspace of its outputs: pipeline sync, which logs it again"
        yield Finding(subject, "its logged model is gone", expected=model_id, found="none", remedy=remedy)
    else:
        yield from _check_model_tag(subject, "its logged model is another one", digest, model.tags, model_id)


def _check_model_tag(subject: str, problem: str, digest: str, tags: Mapping[str, str], place: str) -> Iterator[Finding]:
    if (recorded := tags.get(MODEL_TAG)) != digest:
        yield Finding(
            subject,
            problem,
            expected=f"{MODEL_TAG} {digest}",
            found=f"{recorded or 'none'} in {place}",
            remedy="one of the two tags was edited: compare them with the digest of the model file",
        )


def _check_evaluation(client: "MlflowClient", run: "Run", subject: str) -> Iterator[Finding]:
    """Check the predictions and figures that decisions are based on."""
    if not (digest := run.data.tags.get(EVALUATION_TAG)):
        yield Finding(
            subject,
            "its run has no evaluation",
            expected=f"a tag {EVALUATION_TAG}",
            found="none",
            remedy="in the workspace of its outputs: pipeline sync",
        )
        return
    found, problem = _download_digest(f"{run.info.artifact_uri}/{EVALUATION_ARTIFACT}")
    if found != digest:
        yield Finding(
            subject,
            "the evaluation in the artifact store is not the one that was recorded",
            expected=f"{EVALUATION_TAG} {digest}",
            found=found or problem,
            remedy=f"do not use it for a decision; in the workspace of its outputs, delete the tag {EVALUATION_TAG} "
            f"of run {run.info.run_id}, then: pipeline sync",
        )


def _check_dangling_aliases(aliases: Mapping[tuple[str, str], Sequence[str]]) -> Iterator[Finding]:
    """Report aliases of deleted versions. aliases: those that no existing version has, by its name and number."""
    for (name, number), names in aliases.items():
        yield Finding(
            f"{name} version {number}",
            f"{', '.join(names)} points to a version that does not exist",
            expected="a version",
            found="none: it was deleted",
            remedy=f"pipeline promote VERSION --reason TEXT, or delete the alias in MLflow's page of {name}",
        )


def _check_workspace(
    client: "MlflowClient", store: Store, outputs: Outputs, versions: "Sequence[ModelVersion]"
) -> Iterator[Finding]:
    """Compare the workspace's model with `dvc.lock` and with the records in the store."""
    train = outputs.locked("train")
    if MODEL not in train:
        return  # the workspace has no model
    for stage in ("evaluate", "register"):
        if (locked := outputs.locked(stage).get(MODEL)) and locked != train[MODEL]:
            problem = f"{stage} has not read the model that train wrote"
            yield Finding("dvc.lock", problem, train[MODEL], locked, "dvc repro")
    for path in (*OUTPUT_PATHS.values(), QUANTIZED, TRAINING, EVALUATION):
        if locked := outputs.locked_outputs().get(path):
            yield from _check_output(outputs, path, locked)
    if not outputs.are_of("train", MODEL):
        return
    digest = file_digest(outputs.model)
    expected = f"{MODEL_TAG} {digest}"
    if find(client, digest) is None:
        yield Finding(MODEL, f"{store} has no run that made it", expected, "none", "pipeline sync")
    if not outputs.registration.is_file() or not outputs.are_of("register", MODEL):
        return
    registration = read_json(outputs.registration)
    name = registration["name"]
    if registration["model"] != digest:
        yield Finding(REGISTRATION, "it is about another model", digest, registration["model"], "dvc repro register")
    registered = {version.tags.get(MODEL_TAG) for version in versions if version.name == name}
    if registration["gate"] == "passed" and digest not in registered:
        yield Finding(MODEL, f"{name} has no version of it", expected, "none", "pipeline sync")


def _check_data(outputs: Outputs) -> Iterator[Finding]:
    """Check the existing outputs of all stages, except for those that `_check_workspace` checks."""
    others = (*OUTPUT_PATHS.values(), QUANTIZED, TRAINING, EVALUATION, REGISTRATION)
    for path, locked in outputs.locked_outputs().items():
        if path not in others and (outputs.root / path).exists():
            yield from _check_output(outputs, path, locked)


def _check_output(outputs: Outputs, path: str, locked: str) -> Iterator[Finding]:
    here = outputs.root / path
    if (found := dvc_digest(here) if here.exists() else "missing") != locked:
        yield Finding(path, "it is not the one in dvc.lock", locked, found, f"rm -rf {path}; dvc checkout {path}")


def _check_cache(objects: Iterable[Path], outputs: Outputs) -> Iterator[Finding]:
    paths = {digest: path for path, digest in outputs.locked_outputs().items()}
    for file in objects:
        digest = f"{file.parent.name}{file.name}"
        if dvc_integrity.is_damaged(file):
            use = f", of {paths[digest]}" if digest in paths else ""
            yield Finding(
                str(file),
                f"this object of DVC's cache is damaged{use}: DVC would restore it without an error",
                expected=f"MD5 {digest.removesuffix('.dir')}",
                found=file_digest(file, "md5"),
                remedy=f"rm -f {file}; then dvc pull, or pipeline run, which makes it again",
            )


def _download_digest(uri: str) -> tuple[str, str]:
    """Return the SHA-256 of a file in the artifact store, or DVC's digest of a directory; and the error, if any."""
    from mlflow import artifacts

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            return (dvc_digest(path) if path.is_dir() else file_digest(path)), ""
        except Exception as error:
            if not (is_of_store(error) or isinstance(error, OSError)):
                raise
            return "", f"it cannot be read: {without_password(str(error).strip().splitlines()[-1])}"

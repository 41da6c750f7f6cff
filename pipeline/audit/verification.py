"""Verification of the registry, the artifact store, the workspace's outputs, `dvc.lock` and DVC's cache by digest.

No model is loaded, so an altered model file is found before it is executed.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import file_digest, read_json
from pipeline.redaction import without_password
from pipeline.tracking import dvc_cache
from pipeline.tracking.logged_models import MODEL_FILES, MODEL_TAG, OUTPUT_PATHS
from pipeline.tracking.outputs import EVALUATION, MODEL, REGISTRATION, TRAINING, Outputs, dvc_digest
from pipeline.tracking.queries import all_aliases, all_runs, all_versions
from pipeline.tracking.records import EVALUATION_ARTIFACT, EVALUATION_TAG, find
from pipeline.tracking.store import Store, explained, is_of_store, locate, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


NOT_LOCKED = "it is not the one in dvc.lock"


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
        runs = all_runs(client, "")
        versions = sorted(all_versions(client), key=lambda version: (version.name, int(version.version)))
        aliases = all_aliases(client)
        findings = [
            finding
            for version in versions
            for finding in _check_version(client, outputs, version, runs.get(version.run_id), _names(aliases, version))
        ]
        known = {(version.name, str(version.version)) for version in versions}
        findings += [
            Finding(
                f"{name} version {number}",
                f"{', '.join(names)} points to a version that is not there",
                expected="a version",
                found="none: it was deleted",
                remedy=f"pipeline promote VERSION --reason TEXT, or delete the alias in MLflow's page of {name}",
            )
            for (name, number), names in aliases.items()
            if (name, number) not in known
        ]
        findings += _check_workspace(client, store, outputs, versions)
    objects = [] if fast else dvc_cache.find_objects(workspace)
    if not fast:
        findings += _check_data(outputs)
        findings += _check_cache(track(objects), outputs)
    return Verification(len(versions), len(objects), tuple(findings))


def _check_version(
    client: "MlflowClient",
    outputs: Outputs,
    version: "ModelVersion",
    run: "Run | None",
    aliases: tuple[str, ...],
) -> Iterator[Finding]:
    subject = f"{version.name} version {version.version}" + (f" ({', '.join(aliases)})" if aliases else "")
    digest = version.tags.get(MODEL_TAG)
    if not digest:
        yield Finding(
            subject,
            "it has no digest, so nothing vouches for its model file",
            expected=f"a tag {MODEL_TAG}",
            found="none",
            remedy=f"if the pipeline did not register it, delete it: MLflow's page of {version.name}",
        )
        return
    yield from _check_model_files(client, outputs, version, subject, aliases)
    yield from _check_logged_model(client, version, subject, digest)
    if run is None or run.info.lifecycle_stage != "active":
        yield Finding(
            subject,
            "its run is gone, and with it what the model came from",
            expected=f"run {version.run_id}",
            found="none, or a deleted one",
            remedy=f"mlflow runs restore --run-id {version.run_id}, or where its outputs stand: pipeline sync",
        )
        return
    if (recorded := run.data.tags.get(MODEL_TAG)) != digest:
        yield Finding(
            subject,
            "its run made another model",
            expected=f"{MODEL_TAG} {digest}",
            found=f"{recorded or 'none'} in run {run.info.run_id}",
            remedy="one of the two tags was edited: the digest of the model file says which",
        )
    yield from _check_evaluation(client, run, subject)


def _check_model_files(
    client: "MlflowClient", outputs: Outputs, version: "ModelVersion", subject: str, aliases: tuple[str, ...]
) -> Iterator[Finding]:
    """Check the model files that a version has: those that MLflow loads, and those that are served."""
    folder = client.get_model_version_download_uri(version.name, version.version)
    serves = "pipeline rollback --reason 'its model file was altered'; " if "champion" in aliases else ""
    again = f"see whether it can be made again: pipeline reproduce {version.version} --model {version.name}"
    for tag, file in MODEL_FILES.items():
        if not (digest := version.tags.get(tag)):
            continue  # it was registered before there were contracts
        found, problem = _download_digest(f"{folder}/{file}")
        if found != digest:
            path = OUTPUT_PATHS[tag]
            here = outputs.root / path
            same = here.is_file() and file_digest(here) == digest
            yield Finding(
                subject,
                f"the model file {Path(file).name} in the artifact store is not the one that was registered",
                expected=f"SHA-256 {digest} at {folder}/{file}",
                found=found or problem,
                remedy=f"do not load it; {serves}" + (f"copy {path} there, which is the one" if same else again),
            )


def _check_logged_model(
    client: "MlflowClient", version: "ModelVersion", subject: str, digest: str
) -> Iterator[Finding]:
    from mlflow.exceptions import MlflowException

    remedy = "pipeline sync, where its outputs stand: it is logged again"
    model_id = version.source.rpartition("/")[2]
    try:
        model = client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        yield Finding(subject, "its logged model is gone", expected=model_id, found="none", remedy=remedy)
        return
    if (recorded := model.tags.get(MODEL_TAG)) != digest:
        yield Finding(
            subject,
            "its logged model is another one",
            expected=f"{MODEL_TAG} {digest}",
            found=f"{recorded or 'none'} in {model_id}",
            remedy="one of the two tags was edited: the digest of the model file says which",
        )


def _check_evaluation(client: "MlflowClient", run: "Run", subject: str) -> Iterator[Finding]:
    """Check the predictions and figures that decisions are based on."""
    if not (digest := run.data.tags.get(EVALUATION_TAG)):
        yield Finding(
            subject,
            "its run has no evaluation",
            expected=f"a tag {EVALUATION_TAG}",
            found="none",
            remedy="pipeline sync, where its outputs stand",
        )
        return
    found, problem = _download_digest(f"{run.info.artifact_uri}/{EVALUATION_ARTIFACT}")
    if found != digest:
        yield Finding(
            subject,
            "the evaluation in the artifact store is not the one that was recorded",
            expected=f"{EVALUATION_TAG} {digest}",
            found=found or problem,
            remedy=f"decide nothing by it; where its outputs stand, delete the tag {EVALUATION_TAG} of run "
            f"{run.info.run_id}, then: pipeline sync",
        )


def _check_workspace(
    client: "MlflowClient", store: Store, outputs: Outputs, versions: "list[ModelVersion]"
) -> Iterator[Finding]:
    train = outputs.locked("train")
    if MODEL not in train:
        return  # the workspace has no model
    for stage in ("evaluate", "register"):
        if (locked := outputs.locked(stage).get(MODEL)) and locked != train[MODEL]:
            yield Finding(
                "dvc.lock", f"{stage} has not seen the model that train made", train[MODEL], locked, "dvc repro"
            )
    for stage, paths in {"train": (*OUTPUT_PATHS.values(), TRAINING), "evaluate": (EVALUATION,)}.items():
        locked_paths = outputs.locked(stage)
        for path in (path for path in paths if path in locked_paths):
            here = outputs.root / path
            found = dvc_digest(here) if here.exists() else "it is not here"
            if found != locked_paths[path]:
                yield Finding(path, NOT_LOCKED, locked_paths[path], found, f"dvc checkout {stage}")
    if not outputs.are_of("train", MODEL):
        return
    digest = file_digest(outputs.model)
    if find(client, digest) is None:
        yield Finding(MODEL, f"{store} has no run that made it", f"{MODEL_TAG} {digest}", "none", "pipeline sync")
    if not outputs.registration.is_file() or not outputs.are_of("register", MODEL):
        return
    registration = read_json(outputs.registration)
    if registration["model"] != digest:
        yield Finding(REGISTRATION, "it is about another model", digest, registration["model"], "dvc repro register")
    registered = {version.tags.get(MODEL_TAG) for version in versions if version.name == registration["name"]}
    if registration["gate"] == "passed" and digest not in registered:
        yield Finding(
            MODEL, f"{registration['name']} has no version of it", f"{MODEL_TAG} {digest}", "none", "pipeline sync"
        )


def _check_data(outputs: Outputs) -> Iterator[Finding]:
    """Check the existing outputs of all stages, except for those that `_check_workspace` checks."""
    others = (*OUTPUT_PATHS.values(), TRAINING, EVALUATION, REGISTRATION)
    for path, locked in outputs.locked_outputs().items():
        here = outputs.root / path
        if path not in others and here.exists() and (found := dvc_digest(here)) != locked:
            yield Finding(path, NOT_LOCKED, locked, found, f"rm -rf {path}; dvc checkout {path}")


def _check_cache(objects: Iterable[Path], outputs: Outputs) -> Iterator[Finding]:
    named = {digest: path for path, digest in outputs.locked_outputs().items()}
    for path in objects:
        name = f"{path.parent.name}{path.name}"
        if dvc_cache.is_damaged(path):
            use = f", of {named[name]}" if name in named else ""
            yield Finding(
                str(path),
                f"this object of DVC's cache is damaged{use}: DVC would restore it all the same",
                expected=f"MD5 {name.removesuffix('.dir')}",
                found=file_digest(path, "md5"),
                remedy=f"rm -f {path}; then dvc pull, or pipeline run, which makes it again",
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


def _names(aliases: dict[tuple[str, str], tuple[str, ...]], version: "ModelVersion") -> tuple[str, ...]:
    return aliases.get((version.name, str(version.version)), ())

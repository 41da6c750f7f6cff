"""Registration of a model as a numbered version of its dataset's registered model.

A version is identified by the digest of its model file: the same file is not registered or judged twice. A model that
the absolute gate rejected gets no version. The champion rule (`decision`) decides on the aliases: `champion` is served,
`challenger` waits.
"""

import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import table
from pipeline.data.catalog import CATALOG, LOCAL, load_catalog
from pipeline.errors import TrackingError
from pipeline.evaluation.champion_rule import Decision
from pipeline.evaluation.gate import Check
from pipeline.events import record_event
from pipeline.files import file_digest, read_json, write_json
from pipeline.params import PARAMS_FILE, RegisterParams, load_params
from pipeline.registry.alias_history import find_aliases, find_aliases_of
from pipeline.registry.apply_champion_rule import decide_on_version
from pipeline.registry.card_upload import upload_card
from pipeline.registry.versions import ACCURACY_TAG, DECISION_TAG, REASON_TAG
from pipeline.tracking.logged_models import EXPORTED_TAG, INT8_TAG, MODEL_FILES, MODEL_TAG, OUTPUT_PATHS, digest_tags
from pipeline.tracking.queries import pages
from pipeline.tracking.stage_outputs import Outputs, read_csv
from pipeline.tracking.store import Store, as_default, explained, locate, open_store
from pipeline.tracking.training_runs import Record
from pipeline.workspace import lock, main_repository

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: MLflow's pages link the versions by it
LOCK_WAIT_SECONDS = 60
COMMIT_TAG = "mlflow.source.git.commit"
LINEAGE_TAGS = ("data.train", "data.validation", "data.test", "gate", "git.dirty", COMMIT_TAG)


@dataclass(frozen=True)
class Registration:
    """The state of a model in the registry."""

    name: str
    version: str | None  # None: rejected, and never registered before
    aliases: tuple[str, ...]  # of the version, now
    decision: Decision
    is_new: bool  # this call registered the version, or completed its registration
    commit: str | None = None  # git commit of the version's training

    def __str__(self) -> str:
        if self.decision.outcome == "rejected":
            earlier = (
                f" Version {self.version}, which passed other thresholds, stays registered." if self.version else ""
            )
            return f"{self.name}: rejected. {self.decision.reason}{earlier}"
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name} version {self.version}{aliases}. {self.decision.reason}"


def register(record: Record, outputs: Outputs, params: RegisterParams) -> Registration:
    """Register the model of a run, if it passed the gate. Idempotent.

    Args:
        record: the complete run of the workspace's model, with its evaluation.
        outputs: the workspace's.

    Raises:
        TrackingError: the registry cannot be used.
    """
    name, digest = registered_name(outputs), file_digest(outputs.model)
    gate = read_json(outputs.evaluation / "gate.json")
    passed = bool(gate["passed"])
    remedy = "wait for the other registration, or end its process"
    main = main_repository(outputs.root)
    with lock("the registry", wait=LOCK_WAIT_SECONDS, remedy=remedy, root=main), explained(record.store):
        version = find_version_of(record.client, name, digest)
        is_new = passed and (version is None or DECISION_TAG not in version.tags)
        if is_new:
            version = version or _create_version(record, outputs, name)
            decision = decide_on_version(record, outputs, version, params)
        elif passed and version:
            _add_int8_model(record.client, version, outputs)
            decision = Decision(version.tags[DECISION_TAG], version.tags.get(REASON_TAG, "It has an earlier decision."))
        else:
            failures = "; ".join(str(Check(**check)) for check in gate["checks"] if not check["passed"])
            decision = Decision("rejected", f"The model did not pass the absolute gate: {failures}.", "gate")
            if record.tags.get(DECISION_TAG) != decision.outcome:
                evidence = {"outcome": decision.outcome, "reason": decision.reason}
                record_event("model.rejected", evidence, dataset=name, root=main)
        number = str(version.version) if version else None
        aliases = find_aliases_of(record.client, name, number) if number else ()
    tags = {DECISION_TAG: decision.outcome} | ({"registry.name": name, "registry.version": number} if number else {})
    if not tags.items() <= record.tags.items():
        record.set_tags(tags)
    commit = version.tags.get(COMMIT_TAG) if version else None
    registration = Registration(name, number, aliases, decision, is_new, commit)
    upload_card(record, outputs, registration)
    return registration


def open_registry(workspace: Path) -> "tuple[Store, MlflowClient]":
    """Open the store of a workspace for reading. Does not create a missing store.

    Raises:
        TrackingError: the store does not exist yet, or cannot be used.
    """
    store = locate(workspace)
    if store.database and not store.database.exists():
        raise TrackingError("nothing is registered yet", found=f"no {store.database}", remedy="pipeline run")
    return store, open_store(store)


def current_name(workspace: Path) -> str:
    """Return the registered name of the workspace's models, if they are of `dataset.name`; else `dataset.name`."""
    dataset, outputs = load_params(workspace / PARAMS_FILE).dataset.name, Outputs(workspace)
    if outputs.registration.is_file():
        name = str(read_json(outputs.registration)["name"])
    elif outputs.split("test").is_file() and (outputs.evaluation / "per_class.csv").is_file():
        name = registered_name(outputs)  # an experiment has no `registration.json`
    else:
        return dataset
    if name == dataset or not _is_name_of(dataset, name):
        return dataset
    others = [entry for entry in load_catalog(workspace / CATALOG) if len(entry) > len(dataset)]
    return dataset if any(_is_name_of(entry, name) for entry in others) else name


def _is_name_of(dataset: str, name: str) -> bool:
    """Match the registered names of a dataset: `NAME` or `NAME-local-1a2b3c4d`, each optionally with `-is-CLASSES`."""
    return bool(re.fullmatch(rf"{re.escape(dataset)}({LOCAL}[0-9a-f]{{8}})?(-is-.+)?", name))


def judged_versions(workspace: Path) -> set[tuple[str, str]]:
    """Return the registered name and number of every judged version. Does not create a missing store.

    Raises:
        TrackingError: the store cannot be used.
    """
    store = locate(workspace)
    if store.database and not store.database.exists():
        return set()
    client = open_store(store)
    with explained(store):
        versions = pages(client.search_model_versions, "")
        return {(version.name, str(version.version)) for version in versions if DECISION_TAG in version.tags}


def find_version(client: "MlflowClient", name: str, which: str) -> "ModelVersion":
    """Find a version by its number or by an alias.

    Raises:
        TrackingError: it does not exist. Lists the existing ones.
    """
    models = client.search_registered_models(f"name = '{name}'")
    if not models:
        known = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise TrackingError(
            f"there is no registered model {name}", expected=f"one of: {known}", remedy="pipeline run, or --model NAME"
        )
    aliases = find_aliases(client, name)
    versions = {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    number = aliases.get(which.removeprefix("@"), which)
    if number not in versions:
        raise TrackingError(
            f"{name} has no version {which}",
            expected=", ".join([*sorted(versions, key=int), *sorted(aliases)]),
            found=which,
        )
    return versions[number]


def write_registration(outputs: Outputs, *, judged: bool = True) -> None:
    """Write `registration.json`, without values that a registry assigns.

    The same model therefore gives the same bytes, whatever is registered.

    Args:
        judged: False in an experiment. The file then differs, so DVC runs `register` after the experiment is applied.
    """
    passed = read_json(outputs.evaluation / "gate.json")["passed"]
    content = {
        "model": file_digest(outputs.model),
        "name": registered_name(outputs),
        "gate": "passed" if passed else "rejected",
    }
    if not judged:
        content["judged"] = "not in an experiment"
    write_json(outputs.registration, content)


def registered_name(outputs: Outputs) -> str:
    """Return the registered name of a workspace's model: the dataset's; `DATASET-is-CLASSES` for a yes-or-no task."""
    return name_model(table.read_dataset(outputs.split("test")), _read_judged_classes(outputs))


def name_model(dataset: table.Dataset, answers: tuple[str, ...]) -> str:
    """Return the registered name of the models with these classes. It is unique for them."""
    if answers == dataset.classes:
        return dataset.name
    slugs = {_slug(name) for name in dataset.classes}
    is_clear = len(slugs) == len(dataset.classes) and "" not in slugs  # `C` and `C++` have the same slug
    digest = "" if is_clear else f"-{hashlib.sha256(answers[1].encode()).hexdigest()[:8]}"
    return f"{dataset.name}-is-{_slug(answers[1])}{digest}"


def _create_version(record: Record, outputs: Outputs, name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        record.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = record.logged_model(outputs)
    lineage = {key: record.tags[key] for key in LINEAGE_TAGS if key in record.tags}
    metrics = read_json(outputs.evaluation / "metrics.json")
    accuracy = {
        ACCURACY_TAG: str(metrics["accuracy"]),
        f"{ACCURACY_TAG}.low": str(metrics["accuracy_low"]),
        f"{ACCURACY_TAG}.high": str(metrics["accuracy_high"]),
    }
    tags = lineage | accuracy | digest_tags(outputs)
    with as_default(record.store):
        version = record.client.create_model_version(
            name, model.model_uri, record.id, tags=tags, model_id=model.model_id
        )
    links = [*json.loads(model.tags.get(VERSIONS_TAG, "[]")), {"name": name, "version": version.version}]
    record.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(links)})
    return version


def _add_int8_model(client: "MlflowClient", version: "ModelVersion", outputs: Outputs) -> None:
    """Add the workspace's int8 model to a version that was registered without one, if it is of the same served file.

    The version's contract stays as it is, so that the version can be loaded at any moment. Its tag, set last, has the
    digest of the file.
    """
    digests = digest_tags(outputs)
    same = version.tags.get(EXPORTED_TAG) == digests.get(EXPORTED_TAG)
    if INT8_TAG not in digests or INT8_TAG in version.tags or not same:
        return
    model_id = str(version.source).rpartition("/")[2]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, MODEL_FILES[INT8_TAG])
        file.parent.mkdir()
        shutil.copyfile(outputs.root / OUTPUT_PATHS[INT8_TAG], file)
        client.log_model_artifacts(model_id, scratch)
    client.set_logged_model_tags(model_id, {INT8_TAG: digests[INT8_TAG]})
    client.set_model_version_tag(version.name, str(version.version), INT8_TAG, digests[INT8_TAG])


def find_version_of(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """Find the oldest version of a model file, by the file's SHA-256. None if it is not registered."""
    same = client.search_model_versions(f"name = '{name}' and tags.`{MODEL_TAG}` = '{digest}'")
    return min(same, key=lambda version: int(version.version), default=None)


def _read_judged_classes(outputs: Outputs) -> tuple[str, ...]:
    """Read the judged classes of a model: the dataset's, or for a yes-or-no task `other` and the positive class."""
    return tuple(row["class"] for row in read_csv(outputs.evaluation / "per_class.csv"))


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text.casefold()).strip("-")

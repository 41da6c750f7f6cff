"""The registry: a dataset's models as numbered versions, and the aliases that say which of them serves.

`champion` serves, `challenger` waits; which of them a model becomes, the champion rule says (`judgement`). A version
belongs to one model file, known by its digest: the same file is found again, never registered or judged twice. What the
absolute gate rejected gets no version at all.
"""

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import table
from pipeline.data.catalog import CATALOG_FILE, load_catalog
from pipeline.data.sources import LOCAL
from pipeline.errors import TrackingError
from pipeline.evaluation.champion_rule import Decision
from pipeline.files import file_digest, read_json, write_json
from pipeline.params import PARAMS_FILE, RegisterParams, load_params
from pipeline.registry.aliases import ACCURACY_TAG, CHALLENGER, CHAMPION, DECISION_TAG, REASON_TAG, find_aliases
from pipeline.registry.card_upload import publish
from pipeline.registry.decision import judge
from pipeline.registry.model_card import describe_task
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.outputs import Outputs
from pipeline.tracking.queries import pages
from pipeline.tracking.records import Record
from pipeline.tracking.store import Store, as_default, explained, locate, open_store
from pipeline.workspace import lock, main_repository

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: by it MLflow's pages lead to the versions
LOCK_WAIT_SECONDS = 60
COMMIT_TAG = "mlflow.source.git.commit"
LINEAGE_TAGS = ("data.train", "data.validation", "data.test", "gate", "git.dirty", COMMIT_TAG)


@dataclass(frozen=True)
class Registration:
    """Where a model stands in the registry."""

    name: str
    version: str | None  # None: rejected, and never registered before
    aliases: tuple[str, ...]  # that the version has now
    decision: Decision
    is_new: bool  # whether the version was registered, or its registration completed, just now
    commit: str | None = None  # that the version was trained from

    def __str__(self) -> str:
        if self.decision.outcome == "rejected":
            held = f" Version {self.version}, from other thresholds, stays as it is." if self.version else ""
            return f"{self.name}: rejected. {self.decision.reason}{held}"
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name} version {self.version}{aliases}. {self.decision.reason}"


def register(record: Record, outputs: Outputs, params: RegisterParams) -> Registration:
    """Enter the model of a run in the registry, if the gate let it pass. Doing it again changes nothing.

    Args:
        record: the complete run that made the workspace's model, with its evaluation.
        outputs: the workspace's.

    Raises:
        TrackingError: the registry cannot be used.
    """
    name, digest = registered_name(outputs), file_digest(outputs.model)
    passed = bool(read_json(outputs.evaluation / "gate.json")["passed"])
    remedy = "wait for the other registration, or end its process"
    main = main_repository(outputs.root)
    with lock("the registry", wait=LOCK_WAIT_SECONDS, remedy=remedy, root=main), explained(record.store):
        version = _find_version_of(record.client, name, digest)
        is_new = passed and (version is None or DECISION_TAG not in version.tags)
        if is_new:
            version = version or _create_version(record, outputs, name)
            decision = judge(record, outputs, version, params)
        elif passed and version:
            decision = Decision(version.tags[DECISION_TAG], version.tags.get(REASON_TAG, "It was judged before."))
        else:
            decision = Decision("rejected", "The model did not pass the absolute gate.", "gate")
        number = str(version.version) if version else None
        standing = find_aliases(record.client, name) if number else {}
        aliases = tuple(sorted(alias for alias, at in standing.items() if at == number))
    tags = {DECISION_TAG: decision.outcome} | ({"registry.name": name, "registry.version": number} if number else {})
    if not tags.items() <= record.tags.items():
        record.set_tags(tags)
    commit = version.tags.get(COMMIT_TAG) if version else None
    registration = Registration(name, number, aliases, decision, is_new, commit)
    publish(record, outputs, registration)
    return registration


def open_registry(workspace: Path) -> "tuple[Store, MlflowClient]":
    """The store of a workspace, to look things up in: one that is not there is not made.

    Raises:
        TrackingError: nothing was recorded yet, or the store cannot be used.
    """
    store = locate(workspace)
    if store.database and not store.database.exists():
        raise TrackingError("nothing is registered yet", found=f"no {store.database}", remedy="pipeline run")
    return store, open_store(store)


def current_name(workspace: Path) -> str:
    """The registered name of the workspace's models, if they are of `dataset.name`; else `dataset.name` itself."""
    dataset, outputs = load_params(workspace / PARAMS_FILE).dataset.name, Outputs(workspace)
    if outputs.registration.is_file():
        name = str(read_json(outputs.registration)["name"])
    elif outputs.split("test").is_file() and (outputs.evaluation / "per_class.csv").is_file():
        name = registered_name(outputs)  # an experiment leaves no registration
    else:
        return dataset
    if name == dataset or not _is_name_of(dataset, name):
        return dataset
    others = [entry for entry in load_catalog(workspace / CATALOG_FILE) if len(entry) > len(dataset)]
    return dataset if any(_is_name_of(entry, name) for entry in others) else name


def _is_name_of(dataset: str, name: str) -> bool:
    """Whether a registered name can be of a dataset: `NAME`, `NAME-local-1a2b3c4d`, each perhaps with `-is-CLASSES`."""
    return bool(re.fullmatch(rf"{re.escape(dataset)}({LOCAL}[0-9a-f]{{8}})?(-is-.+)?", name))


def judged_versions(workspace: Path) -> set[tuple[str, str]]:
    """The registered name and number of every version that was judged. A store that is not there is not made.

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
    """A version by its number or by an alias.

    Raises:
        TrackingError: there is none, naming those that there are.
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
    """Write the result of `register` into the workspace, without anything that a registry assigns.

    The same model leaves the same bytes, whatever was registered before it.

    Args:
        judged: False in an experiment. The file then differs, and DVC runs `register` once the experiment is applied.
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
    """The dataset's name; `DATASET-is-CLASSES` for the question whether an image shows one of these classes."""
    return name_model(table.read_dataset(outputs.split("test")), _answers(outputs))


def name_model(dataset: table.Dataset, answers: tuple[str, ...]) -> str:
    """The registered name of the models that give these answers: the same for no other question."""
    if answers == dataset.classes:
        return dataset.name
    slugs = {_slug(name) for name in dataset.classes}
    is_clear = len(slugs) == len(dataset.classes) and "" not in slugs  # or `C` and `C++` would share a name
    digest = "" if is_clear else f"-{hashlib.sha256(answers[1].encode()).hexdigest()[:8]}"
    return f"{dataset.name}-is-{_slug(answers[1])}{digest}"


def _create_version(record: Record, outputs: Outputs, name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        record.client.create_registered_model(name, description=_introduce(outputs))
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
    tags = lineage | accuracy | {MODEL_TAG: file_digest(outputs.model)}
    with as_default(record.store):
        version = record.client.create_model_version(
            name, model.model_uri, record.id, tags=tags, model_id=model.model_id
        )
    links = [*json.loads(model.tags.get(VERSIONS_TAG, "[]")), {"name": name, "version": version.version}]
    record.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(links)})
    return version


def _find_version_of(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """The oldest version that holds a model file."""
    same = client.search_model_versions(f"name = '{name}' and tags.`{MODEL_TAG}` = '{digest}'")
    return min(same, key=lambda version: int(version.version), default=None)


def _answers(outputs: Outputs) -> tuple[str, ...]:
    """The classes that a model was judged on: the dataset's, or for a question of yes or no `other` and the yes."""
    with (outputs.evaluation / "per_class.csv").open(newline="", encoding="utf-8") as file:
        return tuple(row["class"] for row in csv.DictReader(file))


def _introduce(outputs: Outputs) -> str:
    """What a registered model is for, in Markdown."""
    dataset = table.read_dataset(outputs.split("test"))
    task = describe_task(dataset, _answers(outputs))
    shape = f"[n, {dataset.height}, {dataset.width}]"
    return f"{task} Takes raw uint8 images {shape}. `{CHAMPION}` serves, `{CHALLENGER}` waits."


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text.casefold()).strip("-")

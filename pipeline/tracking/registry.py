"""The registry: a dataset's models as numbered versions, and the aliases that say which of them serves.

`champion` serves, `challenger` waits. A version belongs to one model file, known by its digest: the same file is found
again, never registered or judged twice. What the absolute gate rejected gets no version at all.
"""

import csv
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.data import table
from pipeline.files import file_digest, read_json, write_json
from pipeline.params import RegisterParams
from pipeline.reports.card import describe_task
from pipeline.tracking.cards import publish
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.outputs import Outputs
from pipeline.tracking.records import Record
from pipeline.tracking.store import as_default, explained
from pipeline.workspace import lock, main_repository

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger"]

CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
REASON_TAG = "decision.reason"  # of a version, in words
DECISION_TAG = "decision"  # of a version, set last: one without it was not judged to the end
VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: by it MLflow's pages lead to the versions
LOCK_WAIT_SECONDS = 60
LINEAGE_TAGS = ("data.train", "data.validation", "data.test", "gate", "git.dirty", "mlflow.source.git.commit")


@dataclass(frozen=True)
class Decision:
    """What becomes of a model, and why."""

    outcome: str  # the alias that the model gets, or `rejected`
    reason: str


@dataclass(frozen=True)
class Registration:
    """Where a model stands in the registry."""

    name: str
    version: str | None  # None: rejected, and never registered before
    aliases: tuple[str, ...]  # that the version has now
    decision: Decision
    is_new: bool  # whether the version was registered, or its registration completed, just now

    def __str__(self) -> str:
        if self.decision.outcome == "rejected":
            held = f"; version {self.version}, from other thresholds, stays as it is" if self.version else ""
            return f"{self.name}: rejected, {self.decision.reason}{held}"
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name} version {self.version}{aliases}: {self.decision.reason}"


def decide(earlier: int, first_model: Alias) -> Decision:
    """What becomes of a model that passed the absolute gate and was not judged before.

    Args:
        earlier: versions of its registered model that were judged before.
        first_model: what the first one becomes.
    """
    if not earlier:
        return Decision(first_model, "the first of its name to pass the absolute gate")
    return Decision(CHALLENGER, "it passed the absolute gate")


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
        version = _find_version(record.client, name, digest)
        is_new = passed and (version is None or DECISION_TAG not in version.tags)
        if is_new:
            version = version or _create_version(record, outputs, name)
            decision = _judge(record.client, version, params)
        elif passed and version:
            decision = Decision(version.tags[DECISION_TAG], version.tags.get(REASON_TAG, "it was judged before"))
        else:
            decision = Decision("rejected", "it did not pass the absolute gate")
        number = str(version.version) if version else None
        aliases = _find_aliases(record.client, name, number) if number else ()
    tags = {DECISION_TAG: decision.outcome} | ({"registry.name": name, "registry.version": number} if number else {})
    if not tags.items() <= record.tags.items():
        record.set_tags(tags)
    registration = Registration(name, number, aliases, decision, is_new)
    publish(record, outputs, registration)
    return registration


def write_registration(outputs: Outputs) -> None:
    """Leave in the workspace what `register` came to, without anything that a registry assigns.

    So the same model leaves the same bytes, whatever was registered before it.
    """
    passed = read_json(outputs.evaluation / "gate.json")["passed"]
    content = {
        "model": file_digest(outputs.model),
        "name": registered_name(outputs),
        "gate": "passed" if passed else "rejected",
    }
    write_json(outputs.registration, content)


def registered_name(outputs: Outputs) -> str:
    """The dataset's name; `DATASET-is-CLASSES` for the question whether an image shows one of these classes."""
    dataset, answers = table.read_dataset(outputs.split("test")), _answers(outputs)
    return dataset.name if answers == dataset.classes else f"{dataset.name}-is-{_slug(answers[1])}"


def move_alias(client: "MlflowClient", name: str, alias: str, version: str) -> None:
    """Let an alias point to a version, wherever it pointed before. Every move of ours goes through here."""
    client.set_registered_model_alias(name, alias, version)


def _judge(client: "MlflowClient", version: "ModelVersion", params: RegisterParams) -> Decision:
    others = client.search_model_versions(f"name = '{version.name}'")
    earlier = [
        other for other in others if DECISION_TAG in other.tags
    ]  # one that was not judged to the end is no rival
    decision = decide(len(earlier), params.first_model)
    move_alias(client, version.name, decision.outcome, version.version)
    client.set_model_version_tag(version.name, version.version, REASON_TAG, decision.reason)
    client.set_model_version_tag(version.name, version.version, DECISION_TAG, decision.outcome)
    return decision


def _create_version(record: Record, outputs: Outputs, name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        record.client.create_registered_model(name, description=_introduce(outputs))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = record.logged_model(outputs)
    lineage = {key: record.tags[key] for key in LINEAGE_TAGS if key in record.tags}
    tags = lineage | {MODEL_TAG: file_digest(outputs.model)}
    with as_default(record.store):
        version = record.client.create_model_version(
            name, model.model_uri, record.id, tags=tags, model_id=model.model_id
        )
    links = [*json.loads(model.tags.get(VERSIONS_TAG, "[]")), {"name": name, "version": version.version}]
    record.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(links)})
    return version


def _find_version(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """The oldest version that holds a model file."""
    same = client.search_model_versions(f"name = '{name}' and tags.`{MODEL_TAG}` = '{digest}'")
    return min(same, key=lambda version: int(version.version), default=None)


def _find_aliases(client: "MlflowClient", name: str, version: str) -> tuple[str, ...]:
    """The aliases of a version, which a search for versions does not fill in."""
    aliases = client.get_registered_model(name).aliases
    return tuple(sorted(alias for alias, at in aliases.items() if str(at) == version))


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

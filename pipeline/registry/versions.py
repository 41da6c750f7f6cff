"""The versions of a registered model: list them, and find deleted runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.queries import find_or_none, pages

if TYPE_CHECKING:
    from mlflow import MlflowClient

LARGEST_PAGE = 10_000
# Tags of a version.
DECISION_TAG = "decision"  # set last: without it, the decision is incomplete
REASON_TAG = "decision.reason"
ACCURACY_TAG = "test.accuracy"  # at registration; `.low` and `.high` are the ends of its 95 % interval


@dataclass(frozen=True)
class Version:
    """A registered version. Values that were not recorded are None."""

    number: int
    aliases: tuple[str, ...]
    created: int  # milliseconds since 1970
    accuracy: float | None  # on the test images, when it was registered
    accuracy_low: float | None  # ends of its 95 % interval
    accuracy_high: float | None
    data: str | None  # MD5 of the train split
    commit: str | None
    dirty: bool  # the tree had uncommitted changes
    decision: str | None
    reason: str | None  # of the decision
    model: str | None  # SHA-256 of the model file
    run: str | None  # id of the training run


def find_deleted_run(client: "MlflowClient", name: str, number: str) -> str | None:
    """Return the id of a version's run if the run was deleted, else None."""
    version = find_or_none(client.get_model_version, name, number)
    if version is None or not version.run_id:
        return None
    run = find_or_none(client.get_run, version.run_id)
    return None if run and run.info.lifecycle_stage == "active" else version.run_id


def list_versions(client: "MlflowClient", name: str, by_alias: Mapping[str, str]) -> list[Version]:
    """List the versions of a registered model, newest first. MLflow's search does not return their aliases."""
    aliases: dict[str, list[str]] = {}
    for alias, number in sorted(by_alias.items()):
        aliases.setdefault(number, []).append(alias)
    versions = []
    for version in pages(client.search_model_versions, f"name = '{name}'", size=LARGEST_PAGE):
        tags = version.tags
        accuracy, low, high = (
            float(tags[key]) if (key := f"{ACCURACY_TAG}{end}") in tags else None for end in ("", ".low", ".high")
        )
        versions.append(
            Version(
                number=int(version.version),
                aliases=tuple(aliases.get(str(version.version), ())),
                created=version.creation_timestamp,
                accuracy=accuracy,
                accuracy_low=low,
                accuracy_high=high,
                data=tags.get("data.train"),
                commit=tags.get("mlflow.source.git.commit"),
                dirty=tags.get("git.dirty") == "true",
                decision=tags.get(DECISION_TAG),
                reason=tags.get(REASON_TAG),
                model=tags.get(MODEL_TAG),
                run=version.run_id,
            )
        )
    return sorted(versions, key=lambda version: -version.number)

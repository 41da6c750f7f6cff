"""What there is in the registry: the versions of a registered model, read in one request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tracking.history import ACCURACY_TAG, DECISION_TAG, REASON_TAG
from pipeline.tracking.logged_models import MODEL_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

LARGEST_PAGE = 10_000


@dataclass(frozen=True)
class Version:
    """A registered version. What was never recorded of it is None."""

    number: int
    aliases: tuple[str, ...]
    created: int  # milliseconds since 1970
    accuracy: float | None  # on the test images, when it was registered
    accuracy_low: float | None  # ends of its 95 % interval
    accuracy_high: float | None
    data: str | None  # MD5 of the train split
    commit: str | None
    dirty: bool  # the tree differed from the commit
    decision: str | None
    reason: str | None  # of the decision
    model: str | None  # SHA-256 of the model file
    run: str | None  # id of the run that made it


def list_versions(client: "MlflowClient", name: str, by_alias: Mapping[str, str]) -> list[Version]:
    """List the versions of a registered model, the newest first. MLflow's search does not return their aliases."""
    aliases: dict[str, list[str]] = {}
    for alias, number in sorted(by_alias.items()):
        aliases.setdefault(number, []).append(alias)
    found = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=LARGEST_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    versions = []
    for version in found:
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

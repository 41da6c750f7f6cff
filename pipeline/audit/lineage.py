"""Lineage of registered versions: find a version's code and data, or the versions of given code or data.

Everything is read from MLflow: the tags of the version, the tags and artifacts of its run.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.applied_corrections import Applied, count_by_class, count_by_person
from pipeline.errors import TrackingError
from pipeline.files import parse_yaml
from pipeline.registry.alias_history import find_aliases
from pipeline.registry.registration import current_name, find_version, open_registry
from pipeline.registry.versions import DECISION_TAG, REASON_TAG
from pipeline.tracking.logged_models import MODEL_FILES, MODEL_TAG
from pipeline.tracking.provenance import BATCH_TAG, COMMIT_TAG
from pipeline.tracking.queries import all_aliases, all_runs, all_versions
from pipeline.tracking.store import Store, explained, locate, open_store
from pipeline.tracking.training_runs import DATA_ARTIFACT, DIFF_ARTIFACT, EVALUATION_TAG, LOCK_ARTIFACT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

REPRODUCTION_TAG = "reproduction"  # of a version: the outcome of its last reproduction
REPRODUCTION_REASON_TAG = "reproduction.reason"
DATA_STAGES = ("ingest", "validate", "split")
DATA_TAGS = ("data.raw", "data.dataset", "data.train", "data.validation", "data.test")
SHORTEST_PREFIX = 4  # characters of a digest or a commit


@dataclass(frozen=True)
class Lineage:
    """A registered version, and the run that made its model."""

    store: Store
    client: "MlflowClient"
    version: "ModelVersion"
    run: "Run"
    aliases: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.version.name} version {self.version.version}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the run."""
        return dict(self.run.data.tags)

    def has_artifact(self, path: str) -> bool:
        parent = path.rpartition("/")[0] or None
        return any(entry.path == path for entry in self.client.list_artifacts(self.run.info.run_id, parent))

    def read_artifact(self, path: str) -> str:
        """Read an artifact of the run. Returns an empty text if the run has none."""
        if not self.has_artifact(path):
            return ""
        with tempfile.TemporaryDirectory() as directory:
            file = self.client.download_artifacts(self.run.info.run_id, path, directory)
            return Path(file).read_text(encoding="utf-8")

    @cached_property
    def data_stages(self) -> dict[str, Any]:
        """The stages before `train` in the run's `dvc.lock`. Empty if the model was trained on other data."""
        if "data.dataset" not in self.tags:  # set only if the lock describes the splits that `train` read
            return {}
        stages = (parse_yaml(self.read_artifact(LOCK_ARTIFACT)) or {}).get("stages", {})
        return {stage: stages[stage] for stage in DATA_STAGES if stage in stages}


@dataclass(frozen=True)
class Descendant:
    """A version that was made from some data or a commit."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run: str
    by: tuple[str, ...]  # matching keys: `data.dataset`, `batch week-48`, `commit`


def find_lineage(workspace: Path, version: str, name: str | None = None) -> Lineage:
    """Find a registered version and its run.

    Args:
        version: its number, or one of its aliases.
        name: of the registered model; None: the workspace's.

    Raises:
        TrackingError: the version or its run does not exist, or the store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    store, client = open_registry(workspace)
    name = name or current_name(workspace)
    with explained(store):
        found = find_version(client, name, version)
        at = str(found.version)
        aliases = tuple(sorted(alias for alias, number in find_aliases(client, name).items() if number == at))
        try:
            return Lineage(store, client, found, client.get_run(found.run_id), aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            problem = f"the run of {name} version {at} is not in the store"
            raise TrackingError(problem, found=error.message, remedy="pipeline verify") from None


def describe_lineage(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Describe a version's code, data, environment and decisions, by subject. Unknown subjects are left out.

    Raises:
        TrackingError: the store cannot be used.
    """
    version, run, tags = lineage.version, lineage.run, lineage.tags
    environment = sorted(name for name in tags if name.startswith(("environment.", "version.", "host.")))
    with explained(lineage.store):
        subjects: dict[str, dict[str, Any]] = {
            "version": {
                "name": version.name,
                "version": str(version.version),
                "aliases": list(lineage.aliases),
                "registered": _format_time(version.creation_timestamp),
                **select(version.tags, MODEL_FILES),
            },
            "run": {
                "id": run.info.run_id,
                "experiment": lineage.client.get_experiment(run.info.experiment_id).name,
                "started": _format_time(run.info.start_time),
                "status": run.info.status,
                **({"rebuilt": "from the outputs; code and machine are unknown"} if "restored" in tags else {}),
                **select(tags, ["mlflow.parentRunId", "dvc.experiment", "mlflow.user"]),
            },
            "code": _describe_code(lineage),
            "params": dict(sorted(run.data.params.items())),
            "environment": select(tags, environment),
            "data": _describe_data(lineage),
            "validation": _describe_validation(lineage),
            "evaluation": select(tags, ["gate", EVALUATION_TAG])
            | {name: value for name, value in sorted(run.data.metrics.items()) if name.startswith("test_")},
            "decision": select(version.tags, [DECISION_TAG, REASON_TAG]),
            "reproduction": select(version.tags, [REPRODUCTION_TAG, REPRODUCTION_REASON_TAG]),
        }
    return {subject: facts for subject, facts in subjects.items() if facts}


def find_descendants(workspace: Path, *, data: str | None = None, commit: str | None = None) -> list[Descendant]:
    """Find the versions that were made from some data or trained by the code of a commit.

    Args:
        data: the MD5 that DVC has for a data output or a batch, or its first characters.
        commit: its SHA-1, or its first characters.

    Raises:
        TrackingError: the digest or commit is too short, or the store cannot be used.
    """
    if len(prefix := data or commit or "") < SHORTEST_PREFIX:
        raise TrackingError(f"{prefix!r} is too short to identify anything", expected=f"{SHORTEST_PREFIX} characters")
    store = locate(workspace)
    client = open_store(store)
    with explained(store):
        runs = all_runs(client, f"tags.`{MODEL_TAG}` LIKE '%'")
        versions, aliases = all_versions(client), all_aliases(client)
    found = []
    for version in versions:
        name, number, run = version.name, str(version.version), runs.get(version.run_id)
        if run and (by := tuple((_match_data if data else _match_commit)(run.data.tags, prefix))):
            found.append(Descendant(name, number, aliases.get((name, number), ()), version.run_id, by))
    return found


def select(tags: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Select the tags with these names that are set."""
    return {name: tags[name] for name in names if name in tags}


def outs(stage: Mapping[str, Any]) -> dict[str, str]:
    """Return the MD5 of a stage's outputs in `dvc.lock`, by path."""
    return {out["path"]: out["md5"] for out in stage.get("outs", ())}


def _match_data(tags: Mapping[str, str], digest: str) -> Iterator[str]:
    yield from (name for name in DATA_TAGS if tags.get(name, "").startswith(digest))
    yield from (f"batch {batch}" for name, batch in tags.items() if name.startswith(BATCH_TAG + digest))


def _match_commit(tags: Mapping[str, str], commit: str) -> Iterator[str]:
    if tags.get(COMMIT_TAG, "").startswith(commit):
        yield "commit, with changes" if tags.get("git.dirty") == "true" else "commit"


def _describe_code(lineage: Lineage) -> dict[str, Any]:
    tags = lineage.tags
    if COMMIT_TAG not in tags:
        return {}
    return {
        "commit": tags[COMMIT_TAG],
        "dirty": tags.get("git.dirty") == "true",
        **({"left out": tags["git.left_out"]} if "git.left_out" in tags else {}),
        **({"diff": DIFF_ARTIFACT} if lineage.has_artifact(DIFF_ARTIFACT) else {}),
    }


def _describe_data(lineage: Lineage) -> dict[str, Any]:
    """List the digests of the batches and of the data stages' outputs, or of the splits if the stages are unknown."""
    tags = lineage.tags
    stages = {name: outs(stage) for name, stage in lineage.data_stages.items()}
    if not stages:
        return {"read": {name.removeprefix("data."): digest for name, digest in select(tags, DATA_TAGS).items()}}
    batches = {tags[name]: name.removeprefix(BATCH_TAG) for name in sorted(tags) if name.startswith(BATCH_TAG)}
    return stages | ({"batches": batches} if batches else {})


def _describe_validation(lineage: Lineage) -> dict[str, Any]:
    if not (text := lineage.read_artifact(f"{DATA_ARTIFACT}/validation.json")):
        return {}
    report = json.loads(text)
    expectations = [expectation["passed"] for expectation in report.get("expectations", ())]
    described = {"passed": report["passed"], "expectations": f"{sum(expectations)} of {len(expectations)} passed"}
    if corrections := [Applied(**count) for count in report.get("corrections", ())]:
        described["corrections"] = {"by class": count_by_class(corrections), "by person": count_by_person(corrections)}
    return described


def _format_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")

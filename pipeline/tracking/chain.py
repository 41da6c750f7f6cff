"""The chain from a version back to all that made it, and forth from data or a commit to the versions that came of it.

Everything is read from the tags and artifacts of the version's run, which has the `dvc.lock` of its day among them.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import TrackingError
from pipeline.files import parse_yaml, read_json
from pipeline.params import PARAMS_FILE
from pipeline.tracking.history import DECISION_TAG, REASON_TAG, find_aliases
from pipeline.tracking.lineage import BATCH_TAG
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.records import DIFF_ARTIFACT, EVALUATION_TAG, LOCK_ARTIFACT, pages, search_runs
from pipeline.tracking.registry import current_name, find_version, open_registry
from pipeline.tracking.store import Store, explained, locate, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

COMMIT_TAG = "mlflow.source.git.commit"
DATA_TAGS = ("data.raw", "data.dataset", "data.train", "data.validation", "data.test")
DECISION_ARTIFACT = "decision/decision.json"
REPRODUCTION_TAG = "reproduction"  # of a version: the outcome of its last reproduction
REPRODUCTION_REASON_TAG = "reproduction.reason"
SHORTEST_PREFIX = 4  # characters of a digest or a commit
DATA_STAGES = ("ingest", "validate", "split")


@dataclass(frozen=True)
class Traced:
    """A version, and the run that made its model."""

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
        """The run's."""
        return dict(self.run.data.tags)

    @property
    def commit(self) -> str | None:
        return self.tags.get(COMMIT_TAG)

    @contextmanager
    def artifact(self, path: str) -> Iterator[Path | None]:
        """A file or directory that the run keeps, for as long as the block takes; None where it keeps none."""
        with tempfile.TemporaryDirectory() as scratch, explained(self.store):
            yield Path(self.download(path, Path(scratch))) if self.has(path) else None

    def has(self, path: str) -> bool:
        """Whether the run keeps an artifact."""
        parent = path.rpartition("/")[0] or None
        return any(entry.path == path for entry in self.client.list_artifacts(self.run.info.run_id, parent))

    def download(self, path: str, directory: Path) -> str:
        """Copy an artifact below a directory; its place there."""
        directory.mkdir(parents=True, exist_ok=True)
        return str(self.client.download_artifacts(self.run.info.run_id, path, str(directory)))

    def lock(self) -> dict[str, Any]:
        """The stages of the `dvc.lock` that the run keeps, as far as they tell of its data: those before `train`."""
        if "data.dataset" not in self.tags:  # the stages before had been run one by one, from other data
            return {}
        with self.artifact(LOCK_ARTIFACT) as file:
            content = parse_yaml(file.read_text(encoding="utf-8")) if file else {}
        return {stage: entry for stage, entry in content.get("stages", {}).items() if stage in DATA_STAGES}


@dataclass(frozen=True)
class Link:
    """One link of the chain."""

    name: str
    facts: Mapping[str, Any]
    look: tuple[str, ...] = field(default=())  # commands that open more of it


@dataclass(frozen=True)
class Descendant:
    """A version that came from some data or a commit."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run: str
    by: tuple[str, ...]  # what of it matched: `data.dataset`, `batch week-48`, `commit`


def trace(workspace: Path, version: str, name: str | None = None) -> Traced:
    """A version of a registered model, with its run.

    Args:
        version: its number, or an alias of it.
        name: of the registered model; None takes the one that the workspace's model is registered under.

    Raises:
        TrackingError: there is no such version, its run is gone, or the store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    store, client = open_registry(workspace)
    name = name or current_name(workspace)
    with explained(store):
        found = find_version(client, name, version)
        try:
            run = client.get_run(found.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise TrackingError(
                f"the run of {name} version {found.version} is not in the store",
                found=error.message,
                remedy="pipeline verify",
            ) from None
        aliases = find_aliases(client, name)
    number = str(found.version)
    return Traced(store, client, found, run, tuple(sorted(alias for alias, at in aliases.items() if at == number)))


def read_chain(traced: Traced) -> list[Link]:
    """Every link from a version to what made it and what became of it.

    Raises:
        TrackingError: the store cannot be used.
    """
    with explained(traced.store):
        links = [make(traced) for make in LINKS]
    return [link for link in links if link.facts]


def find_by_data(workspace: Path, digest: str) -> list[Descendant]:
    """The versions that were trained or judged on data with this digest (MD5, as DVC has it, or how it begins).

    Raises:
        TrackingError: it is too short, or the store cannot be used.
    """

    def matches(tags: Mapping[str, str]) -> Iterator[str]:
        yield from (name for name in DATA_TAGS if tags.get(name, "").startswith(digest))
        for name, value in tags.items():
            if name.startswith(BATCH_TAG + digest):
                yield f"batch {value}"

    return _find(workspace, digest, matches)


def find_by_commit(workspace: Path, commit: str) -> list[Descendant]:
    """The versions that were trained by the code of this commit (its SHA-1, or how it begins), or by changes to it.

    Raises:
        TrackingError: it is too short, or the store cannot be used.
    """

    def matches(tags: Mapping[str, str]) -> Iterator[str]:
        if tags.get(COMMIT_TAG, "").startswith(commit):
            yield "commit, with changes" if tags.get("git.dirty") == "true" else "commit"

    return _find(workspace, commit, matches)


def all_runs(client: "MlflowClient", query: str) -> "dict[str, Run]":
    """Every run that answers a query, by its id."""
    return {run.info.run_id: run for run in search_runs(client, query)}


def all_versions(client: "MlflowClient") -> "list[ModelVersion]":
    """Every version of every registered model."""
    return [*pages(client.search_model_versions, "")]


def all_aliases(client: "MlflowClient") -> dict[tuple[str, str], tuple[str, ...]]:
    """The aliases of every version that has one, by its name and number."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for model in pages(client.search_registered_models, ""):
        for alias, version in sorted(model.aliases.items()):
            key = (model.name, str(version))
            found[key] = (*found.get(key, ()), alias)
    return found


def _find(workspace: Path, prefix: str, matches: Callable[[Mapping[str, str]], Iterator[str]]) -> list[Descendant]:
    if len(prefix) < SHORTEST_PREFIX:
        raise TrackingError(f"{prefix!r} is too short to tell anything apart", expected=f"{SHORTEST_PREFIX} characters")
    store = locate(workspace)
    client = open_store(store)
    with explained(store):
        runs = all_runs(client, f"tags.`{MODEL_TAG}` LIKE '%'")
        versions, aliases = all_versions(client), all_aliases(client)
    found = []
    for version in sorted(versions, key=lambda version: (version.name, int(version.version))):
        by = tuple(matches(runs[version.run_id].data.tags)) if version.run_id in runs else ()
        if by:
            number = str(version.version)
            names = aliases.get((version.name, number), ())
            found.append(Descendant(version.name, number, names, version.run_id, by))
    return found


def _versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    return [*pages(client.search_model_versions, f"name = '{name}'")]


def _version(traced: Traced) -> Link:
    version = traced.version
    facts = {
        "name": version.name,
        "version": str(version.version),
        "aliases": list(traced.aliases),
        "registered": _time(version.creation_timestamp),
        MODEL_TAG: version.tags.get(MODEL_TAG),
    }
    return Link("version", facts, (f"mlflow.keras.load_model('models:/{version.name}/{version.version}')",))


def _run(traced: Traced) -> Link:
    info, tags = traced.run.info, traced.tags
    facts: dict[str, Any] = {
        "id": info.run_id,
        "experiment": traced.client.get_experiment(info.experiment_id).name,
        "started": _time(info.start_time),
        "status": info.status,
        **({"rebuilt": "from the stages' outputs: where it was trained is not recorded"} if "restored" in tags else {}),
        **{name: tags[name] for name in ("mlflow.parentRunId", "dvc.experiment", "mlflow.user") if name in tags},
    }
    return Link("run", facts, (f"mlflow runs describe --run-id {info.run_id}",))


def _code(traced: Traced) -> Link:
    if not (commit := traced.commit):
        return Link("code", {})
    tags = traced.tags
    dirty = tags.get("git.dirty") == "true"
    facts = {
        "commit": commit,
        "dirty": dirty,
        **({"left out": tags["git.left_out"]} if "git.left_out" in tags else {}),
        **({"diff": DIFF_ARTIFACT} if traced.has(DIFF_ARTIFACT) else {}),
    }
    look = [f"git show {commit}"]
    return Link("code", facts, (*look, _open(traced, DIFF_ARTIFACT)) if "diff" in facts else tuple(look))


def _params(traced: Traced) -> Link:
    look = (f"git show {traced.commit}:{PARAMS_FILE}",) if traced.commit else ()
    return Link("params", dict(sorted(traced.run.data.params.items())), look)


def _environment(traced: Traced) -> Link:
    facts = {
        name: value
        for name, value in sorted(traced.tags.items())
        if name.startswith(("environment.", "version.", "host."))
    }
    look = (f"git show {traced.commit}:requirements.lock",) if "environment.lock" in facts and traced.commit else ()
    return Link("environment", facts, look)


def _data(traced: Traced) -> Link:
    tags = traced.tags
    outs = {stage: {out["path"]: out["md5"] for out in entry.get("outs", ())} for stage, entry in traced.lock().items()}
    batches = {
        value: name.removeprefix(BATCH_TAG) for name, value in sorted(tags.items()) if name.startswith(BATCH_TAG)
    }
    read = {name.removeprefix("data."): tags[name] for name in DATA_TAGS if name in tags}
    facts: dict[str, Any] = outs | ({"batches": batches} if batches else {})
    if not outs:
        facts = {"read": read} if read else {}
    return Link("data", facts, (_open(traced, LOCK_ARTIFACT),) if outs else ())


def _validation(traced: Traced) -> Link:
    artifact = "data/validation.json"
    with traced.artifact(artifact) as file:
        report = read_json(file) if file else {}
    if not report:
        return Link("validation", {})
    facts: dict[str, Any] = {"passed": report.get("passed")}
    if expectations := report.get("expectations"):
        facts["expectations"] = f"{sum(found['passed'] for found in expectations)} of {len(expectations)} hold"
    pages = "data/data_docs"
    return Link("validation", facts, (_open(traced, artifact), *([_open(traced, pages)] if traced.has(pages) else [])))


def _evaluation(traced: Traced) -> Link:
    tags = traced.tags
    metrics = {name: value for name, value in sorted(traced.run.data.metrics.items()) if name.startswith("test_")}
    gate = {"gate": tags["gate"]} if "gate" in tags else {}
    digest = {EVALUATION_TAG: tags[EVALUATION_TAG]} if EVALUATION_TAG in tags else {}
    return Link("evaluation", gate | digest | metrics, (_open(traced, "evaluation"),) if digest else ())


def _decision(traced: Traced) -> Link:
    tags = traced.version.tags
    facts = {name: tags[name] for name in (DECISION_TAG, REASON_TAG) if name in tags}
    return Link("decision", facts, (_open(traced, DECISION_ARTIFACT),) if traced.has(DECISION_ARTIFACT) else ())


def _reproduction(traced: Traced) -> Link:
    tags = traced.version.tags
    facts = {name: tags[name] for name in (REPRODUCTION_TAG, REPRODUCTION_REASON_TAG) if name in tags}
    return Link("reproduction", facts, (_open(traced, "reproduction"),) if facts else ())


LINKS: Sequence[Callable[[Traced], Link]] = (
    _version, _run, _code, _params, _environment, _data, _validation, _evaluation, _decision, _reproduction
)  # fmt: skip


def _open(traced: Traced, artifact: str) -> str:
    return f"mlflow artifacts download --run-id {traced.run.info.run_id} --artifact-path {artifact}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")

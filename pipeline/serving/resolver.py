"""The process that asks the registry which version to serve, and fetches its files. The others import no MLflow.

`python -m pipeline.serving.resolver` reads its settings from the environment, as the other processes of the server do.
Every two seconds it writes the answer of the registry to a file, after the files of that version were verified.
"""

import logging
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline import logs
from pipeline.errors import PipelineError
from pipeline.files import atomic_directory, file_digest
from pipeline.garbage_collection import collect_rarely
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE
from pipeline.proxies import bypass_proxy
from pipeline.registry.aliases import CHALLENGER, CHAMPION
from pipeline.registry.load_version import CannotBeJudged, download_file, find_model
from pipeline.registry.registration import current_name
from pipeline.serving.current import MODELS, Current, read_current, write_current
from pipeline.serving.example import write_example
from pipeline.serving.served_model import EXAMPLE_FILE
from pipeline.serving.settings import ServeSettings, load_settings
from pipeline.tracking.logged_models import CONTRACT_TAG, EXPORTED_TAG
from pipeline.tracking.queries import find_or_none
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import Store, explained, locate, locate_unserved, open_store
from pipeline.workspace import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PERIOD_SECONDS = 2.0
LOCK_SECONDS = 30.0  # several servers of a project fetch the same files
LEAST_SECONDS = 0.1  # between two questions
KEPT_MODELS = 5  # the latest ones: a rollback needs no download
DIGEST = re.compile("[0-9a-f]{64}")
INPUT_EXAMPLE = "serving_input_example.json"  # of a logged model
# A registry that hangs must be found out soon: the files in place are served on.
SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

_LOGGER = logging.getLogger(__name__)


class Resolver:
    """Asks one registry for one version or alias."""

    def __init__(self, settings: ServeSettings, name: str) -> None:
        self._settings, self._name = settings, name
        self._opened: tuple[Store, MlflowClient] | None = None

    def resolve(self) -> None:
        """Ask once, fetch what is new, and write the answer. A registry that does not answer is noted in the file."""
        self._write(self._settings.current_file, self._settings.version or CHAMPION)
        if self._settings.version is None and self._settings.params.shadow == "challenger":
            self._write(self._settings.challenger_file, CHALLENGER)

    def _write(self, file: Path, which: str) -> None:
        try:
            found = self._ask(which)
        except (PipelineError, OSError) as error:
            problem = error.problem if isinstance(error, PipelineError) else str(error)
            self._opened = None  # `pipeline up` may have started or ended since
            former = read_current(file)
            is_known = former is not None and former.name == self._name
            kept = former if is_known and former else Current(self._name, None, None, None)
            found = Current(self._name, kept.version, kept.sha256, kept.checked_at, problem)
        write_current(file, found)

    def _ask(self, which: str) -> Current:
        if self._opened is None:
            store = locate(self._settings.root)
            self._opened = store, open_store(store)
        store, client = self._opened
        now = time.time()  # before the question: the alias may move right after the answer
        with explained(store):
            get = client.get_model_version if which.isdigit() else client.get_model_version_by_alias
            version = find_or_none(get, self._name, which)
            if version is None:
                problem = f"{self._name} has no version {which}" if which.isdigit() else f"{self._name} has no {which}"
                return Current(self._name, None, None, now, f"{problem} (see: pipeline versions)")
            number = str(version.version)
            if EXPORTED_TAG not in version.tags:
                problem = f"version {number} has no model.tflite; run: pipeline export {number}"
                return self._keep_former(which, now, problem)
            try:
                with lock("the served files", wait=LOCK_SECONDS, remedy="pipeline serve", root=self._settings.root):
                    fetch(store, client, version, self._settings.folder / MODELS, Outputs(self._settings.workspace))
            except (PipelineError, ValueError, KeyError, TypeError) as error:
                problem = error.problem if isinstance(error, PipelineError) else f"its example is damaged: {error}"
                return self._keep_former(which, now, f"version {number} cannot be fetched: {problem}")
        return Current(self._name, number, version.tags[EXPORTED_TAG], now)

    def _keep_former(self, which: str, now: float, problem: str) -> Current:
        """The version that answers stays: the new one cannot be served."""
        former = read_current(self._settings.challenger_file if which == CHALLENGER else self._settings.current_file)
        if former is None or former.name != self._name:
            return Current(self._name, None, None, now, problem)
        return Current(self._name, former.version, former.sha256, now, problem)


def confirm(settings: ServeSettings, name: str) -> None:
    """Confirm the last champion by one query of the project's own database. The import of MLflow takes over a second.

    Does nothing if the champion is another one, or in another store: then the first `Resolver.resolve` does it.
    """
    former, database = read_current(settings.current_file), locate_unserved(settings.root).database
    if settings.version is not None or former is None or former.name != name or database is None:
        return
    now = time.time()
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
            query = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
            found = connection.execute(query, (name, CHAMPION)).fetchone()
    except sqlite3.Error:
        return
    if found and str(found[0]) == former.version:
        write_current(settings.current_file, replace(former, checked_at=now, problem=None))


def fetch(store: Store, client: "MlflowClient", version: "ModelVersion", models: Path, outputs: Outputs) -> Path:
    """Fetch and verify the files of a version, if they are not there, and return their folder.

    Args:
        models: the folder of the folders of all models.
        outputs: of the workspace, for the example of the version.

    Raises:
        CannotBeJudged: a file is gone or altered, or its registered digest is.
        ModelError: the files do not fit together.
        ValueError, KeyError, TypeError: the example is damaged.
    """
    if not DIGEST.fullmatch(version.tags[EXPORTED_TAG]):  # it names a folder, and others can write to the registry
        raise CannotBeJudged(f"its tag {EXPORTED_TAG} is not a SHA-256")
    folder = models / version.tags[EXPORTED_TAG]
    if _is_complete(folder, version):
        os.utime(folder)
        return folder
    from mlflow.artifacts import download_artifacts

    model = find_model(client, version)
    with atomic_directory(folder) as partial:
        scratch = partial / "download"
        scratch.mkdir()
        for tag, name in ((CONTRACT_TAG, CONTRACT_FILE), (EXPORTED_TAG, LITERT_FILE)):
            download_file(store, model, version, tag, scratch).rename(partial / name)
        address = f"{model.artifact_location}/{INPUT_EXAMPLE}"
        example = Path(download_artifacts(artifact_uri=address, dst_path=str(scratch), tracking_uri=store.uri))
        write_example(client, version, partial, example, outputs)
        shutil.rmtree(scratch)
    _remove_old(models)
    return folder


def _is_complete(folder: Path, version: "ModelVersion") -> bool:
    digests = {CONTRACT_FILE: CONTRACT_TAG, LITERT_FILE: EXPORTED_TAG}
    try:
        return (folder / EXAMPLE_FILE).is_file() and all(
            file_digest(folder / name) == version.tags.get(tag) for name, tag in digests.items()
        )
    except OSError:
        return False


def _remove_old(models: Path) -> None:
    folders = sorted((path for path in models.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    for folder in folders[KEPT_MODELS:]:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Ask every two seconds, and when a webhook says so, until the process ends."""
    collect_rarely()
    bypass_proxy()
    logs.configure("resolver")
    os.environ.update(SETTINGS)
    settings = load_settings()
    name = current_name(settings.workspace)
    confirm(settings, name)
    resolver = Resolver(settings, name)
    while True:
        deadline, former = time.monotonic() + PERIOD_SECONDS, _modified_at(settings.refresh_file)
        resolver.resolve()
        time.sleep(LEAST_SECONDS)
        while time.monotonic() < deadline and _modified_at(settings.refresh_file) == former:
            time.sleep(LEAST_SECONDS)


def _modified_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()

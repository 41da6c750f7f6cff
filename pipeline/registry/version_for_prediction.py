"""A registered version for predictions: its loaded model and the names of its classes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import table
from pipeline.data.image_background import Ground, ground_of
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.registry.alias_history import find_aliases_of
from pipeline.registry.load_version import CannotBeJudged, LoadedVersion, load_version
from pipeline.registry.registration import current_name, find_version, open_registry
from pipeline.rooms import find_remedy
from pipeline.tracking.logged_models import GROUND_TAG
from pipeline.tracking.stage_outputs import Outputs, read_csv
from pipeline.tracking.store import explained
from pipeline.tracking.training_runs import EVALUATION_ARTIFACT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class RegisteredModel:
    """A version that is ready to predict."""

    name: str
    version: str
    aliases: tuple[str, ...]
    model: LoadedVersion
    classes: tuple[str, ...]  # in the order of its outputs; `other` first for a yes-or-no task
    classes_ko: tuple[str, ...]  # in Korean; empty if not recorded
    ground: Ground | None  # of its training images; None if unknown


def load_registered_model(workspace: Path, which: str) -> RegisteredModel:
    """Load a version. Its contract says what it takes and answers; without one, the records of its run do.

    Args:
        which: a version number or an alias of the workspace's registered model; or `NAME/VERSION`.

    Raises:
        TrackingError: the version does not exist, or a model file is gone, altered or damaged.
    """
    name, _, number = which.rpartition("/")
    name = name or current_name(workspace)
    store, client = open_registry(workspace)
    with explained(store):
        version = find_version(client, name, number)
        number = str(version.version)
        try:
            loaded = load_version(store, client, version)
        except CannotBeJudged as error:
            raise TrackingError(
                f"{name} version {number} cannot be loaded: {error.problem}",
                remedy=find_remedy("find what is wrong", "pipeline versions"),
            ) from None
        aliases = find_aliases_of(client, name, number)
        classes = loaded.classes
        if contract := loaded.contract:
            return RegisteredModel(name, number, aliases, loaded, classes, contract.answers_ko, contract.ground)
        names, ground = _korean_names(client, version, classes), find_ground(workspace, version, loaded.model)
        return RegisteredModel(name, number, aliases, loaded, classes, names, ground)


def find_ground(workspace: Path, version: "ModelVersion", model: "LoggedModel") -> Ground | None:
    """Find the ground of the training images of a version without a contract. Returns None if it is unknown.

    It is recorded with the model. If not, it is measured, if the workspace has the version's training images.
    """
    if GROUND_TAG in model.tags:
        return int(model.tags[GROUND_TAG])
    split = Outputs(workspace).split("train")
    if not split.is_file() or file_digest(split, "md5") != version.tags.get("data.train"):
        return None
    return ground_of(table.read_dataset(split), next(table.stream(split)).images)


def _korean_names(client: "MlflowClient", version: "ModelVersion", classes: tuple[str, ...]) -> tuple[str, ...]:
    """Read the Korean class names from the version's evaluation. Empty if they are gone."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            place = client.download_artifacts(version.run_id, f"{EVALUATION_ARTIFACT}/per_class.csv", scratch)
        except (MlflowException, OSError):  # the run or the file is gone: callers use the English names
            return ()
        names = {row["class"]: row["class_ko"] for row in read_csv(Path(place))}
    return tuple(names[name] for name in classes) if names.keys() >= set(classes) else ()

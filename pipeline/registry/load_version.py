"""Loading of registered versions: download the files of a model, check their digests, and make it ready to answer."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ModelError, PipelineError
from pipeline.files import file_digest
from pipeline.models.contract import Contract, read_contract
from pipeline.tracking import logged_models
from pipeline.tracking.logged_models import CONTRACT_TAG, EXPORTED_TAG, MODEL_FILES, MODEL_TAG
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"  # prefix of a version's source; the id of its logged model follows


class CannotBeJudged(PipelineError):
    """The predictions of a version cannot be determined. `problem` is the reason, as a clause without a period."""


@dataclass(frozen=True)
class LoadedVersion:
    """A registered model, ready to answer."""

    model: "LoggedModel"
    contract: Contract | None  # None: the version was registered before there were contracts
    shape: tuple[int, ...]  # of an image: (height, width) or (height, width, 3)
    predict: Callable[[np.ndarray], np.ndarray]  # images uint8 [n, *shape] to float32 [n, outputs]
    predict_unpadded: Callable[[np.ndarray], np.ndarray]  # the same, for timing

    @property
    def classes(self) -> tuple[str, ...]:
        """The possible answers in English. Empty if they are unknown."""
        if self.contract:
            return self.contract.create_task().classes
        return _recorded_classes(self.model)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images of another shape.

        Raises:
            CannotBeJudged: naming both shapes.
        """
        if self.shape != shape:
            shapes = [" x ".join(map(str, sides)) for sides in (self.shape, shape)]
            raise CannotBeJudged(f"it takes images of {shapes[0]} pixels, and these have {shapes[1]}")


def load_version(store: Store, client: "MlflowClient", version: "ModelVersion") -> LoadedVersion:
    """Load the exported model of a version. Without a contract, load its `model.keras` by TensorFlow.

    Raises:
        CannotBeJudged: a file is gone, altered or damaged, or the version was not registered by this pipeline.
    """
    model = find_model(client, version)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if CONTRACT_TAG in version.tags:
                return _load_exported(store, model, version, Path(scratch))
            return _load_keras(model, download_file(store, model, version, MODEL_TAG, Path(scratch)))
        except ModelError as error:
            raise CannotBeJudged(f"its model file cannot be loaded ({error.problem})") from None


def read_classes(store: Store, client: "MlflowClient", version: "ModelVersion") -> tuple[str, ...]:
    """Read the possible answers of a version in English, without loading its model. Empty if they are unknown.

    Raises:
        CannotBeJudged: a file is gone, altered or damaged, or the version was not registered by this pipeline.
    """
    model = find_model(client, version)
    if CONTRACT_TAG not in version.tags:
        return _recorded_classes(model)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            contract = read_contract(download_file(store, model, version, CONTRACT_TAG, Path(scratch)))
        except ModelError as error:
            raise CannotBeJudged(f"its contract cannot be read ({error.problem})") from None
    return contract.create_task().classes


def _recorded_classes(model: "LoggedModel") -> tuple[str, ...]:
    """Read the classes among the params of a logged model, which MLflow cuts off if there are many."""
    return tuple(json.loads(model.params.get("classes", "[]")))


def _load_exported(store: Store, model: "LoggedModel", version: "ModelVersion", scratch: Path) -> LoadedVersion:
    from pipeline.models import interpreter

    contract = read_contract(download_file(store, model, version, CONTRACT_TAG, scratch))
    if contract.keras_sha256 != version.tags[MODEL_TAG]:
        raise CannotBeJudged("its contract is of another model")
    exported = interpreter.load(download_file(store, model, version, EXPORTED_TAG, scratch), contract)
    return LoadedVersion(model, contract, exported.shape, exported.predict, exported.predict)


def _load_keras(model: "LoggedModel", file: Path) -> LoadedVersion:
    from pipeline.models import archive
    from pipeline.models.inference import create_predictor, create_unpadded_predictor

    network = archive.load(file)
    predict, unpadded = create_predictor(network), create_unpadded_predictor(network)
    return LoadedVersion(model, None, network.input_shape[1:], predict, unpadded)


def find_model(client: "MlflowClient", version: "ModelVersion") -> "LoggedModel":
    """Find the logged model of a version, and check that its model files exist.

    Raises:
        CannotBeJudged: one is gone, or the version was not registered by this pipeline.
    """
    source = str(version.source)
    model = logged_models.get(client, source.removeprefix(SCHEME)) if source.startswith(SCHEME) else None
    if model is None or MODEL_TAG not in version.tags:
        raise CannotBeJudged("its model is gone, or was not registered by this pipeline")
    expected = {file for tag, file in MODEL_FILES.items() if tag in version.tags}
    found = client.list_logged_model_artifacts(model.model_id, logged_models.MODEL_FOLDER)
    if expected - {entry.path for entry in found}:
        raise CannotBeJudged("its model file is gone from the artifact store")
    return model


def download_file(store: Store, model: "LoggedModel", version: "ModelVersion", tag: str, directory: Path) -> Path:
    """Download a file of a model, and check that its digest is the registered one.

    Args:
        tag: of the version, with the digest of the file.

    Raises:
        CannotBeJudged: the digest differs.
    """
    from mlflow.artifacts import download_artifacts

    address = f"{model.artifact_location}/{MODEL_FILES[tag]}"
    file = Path(download_artifacts(artifact_uri=address, dst_path=str(directory), tracking_uri=store.uri))
    if file_digest(file) != version.tags[tag]:
        raise CannotBeJudged("its model file was altered in the artifact store")
    return file

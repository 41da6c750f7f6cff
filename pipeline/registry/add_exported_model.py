"""Export of a version that was registered without an exported model: add `model.tflite` and its contract.

`model.keras` stays as it is.
"""

import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import table
from pipeline.data.image_background import ground_of
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.models.contract import CONTRACT_FILE, KERAS_FILE, LITERT_FILE, Contract, read_contract
from pipeline.registry.alias_history import current_actor
from pipeline.registry.load_version import CannotBeJudged, download_file, find_model
from pipeline.registry.registration import COMMIT_TAG, current_name, find_version, open_registry
from pipeline.rooms import find_remedy
from pipeline.tracking.logged_models import CONTRACT_TAG, EXPORTED_TAG, MODEL_FOLDER, MODEL_TAG
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import explained

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

EXPORTED_AT_TAG, EXPORTED_BY_TAG = "exported.at", "exported.by"  # of a version that was exported after registration


def export_version(workspace: Path, which: str, name: str | None = None) -> tuple["ModelVersion", Contract | None]:
    """Add the exported model to a version, with the time and the author. The version's aliases stay.

    Can be killed at any moment and run again: the tag of the contract, by which the exported model is found, is last.

    Args:
        which: a version number or an alias.
        name: of the registered model; None: the workspace's.

    Returns:
        the version, and its new contract. None if the version has an exported model already.

    Raises:
        TrackingError: the version or its model file does not exist, or the workspace does not have the validation
            images of its training, on which the answers of both files are compared.
        ModelError: the model cannot be converted, or its two files do not give the same answers.
    """
    store, client = open_registry(workspace)
    with explained(store), tempfile.TemporaryDirectory() as scratch:
        version = find_version(client, name or current_name(workspace), which)
        if CONTRACT_TAG in version.tags:
            return version, None
        split = _require_split(workspace, version)
        folder = Path(scratch, MODEL_FOLDER)
        folder.mkdir()
        try:
            model = find_model(client, version)
            download_file(store, model, version, MODEL_TAG, folder)
        except CannotBeJudged as error:
            problem = f"cannot export version {version.version} of {version.name}: {error.problem}"
            raise TrackingError(problem, remedy=find_remedy("find what is wrong", "pipeline versions")) from None
        contract = _export(folder, model, split)
        (folder / KERAS_FILE).unlink()
        client.log_model_artifacts(model.model_id, scratch)
        digests = {
            EXPORTED_TAG: file_digest(folder / LITERT_FILE),
            CONTRACT_TAG: file_digest(folder / CONTRACT_FILE),
        }
        client.set_logged_model_tags(model.model_id, digests)
        when = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        for key, value in {EXPORTED_AT_TAG: when, EXPORTED_BY_TAG: current_actor(), **digests}.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
    return version, contract


def _require_split(workspace: Path, version: "ModelVersion") -> Path:
    """Find the validation images of a version's training in the workspace."""
    split, expected = Outputs(workspace).split("validation"), version.tags.get("data.validation")
    found = file_digest(split, "md5") if split.is_file() else "none"
    if found != expected:
        commit = version.tags.get(COMMIT_TAG, "COMMIT")[:10]
        raise TrackingError(
            f"cannot export version {version.version} of {version.name}: its validation images are not here",
            expected=f"{split} with the MD5 {expected}",
            found=found,
            remedy=f"git checkout {commit} -- dvc.lock && dvc checkout {split.relative_to(workspace)}; afterwards "
            "git checkout HEAD -- dvc.lock && dvc checkout",
        )
    return split


def _export(folder: Path, model: "LoggedModel", split: Path) -> Contract:
    """Write the exported model and its contract beside the `model.keras` in a folder."""
    from pipeline.models import archive, export
    from pipeline.models.networks import rebuild_views
    from pipeline.models.tasks import create_task

    dataset, params = table.read_dataset(split), model.params
    answers = json.loads(params["classes"])
    positive = answers[1].split(" or ") if params["loss"] == "binary_crossentropy" else []
    task = create_task(params["loss"], dataset.classes, positive)
    network = archive.load(folder / KERAS_FILE)
    content = export.convert(rebuild_views(network, params["tta"], flip=params["flip"] == "True"))
    ground = ground_of(dataset, next(table.stream(split)).images)
    subject = export.Subject(dataset.name, dataset.classes, dataset.classes_ko, ground)

    def blocks() -> Iterator[np.ndarray]:
        return (rows.images for rows in table.stream(split))

    export.write_exported_model(folder, network, content, task, blocks(), subject)
    return read_contract(folder / CONTRACT_FILE)

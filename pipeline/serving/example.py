"""The recorded example of a version: images, and the probabilities that a server has to give for them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import table
from pipeline.evaluation.metrics import class_probabilities
from pipeline.files import file_digest
from pipeline.models import interpreter
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, read_contract
from pipeline.registry.version_predictions import recorded_predictions
from pipeline.serving.served_model import EXAMPLE_FILE
from pipeline.tracking.stage_outputs import Outputs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EVALUATED_IMAGES = 8


def write_example(
    client: "MlflowClient", version: "ModelVersion", folder: Path, example: Path, outputs: Outputs
) -> None:
    """Write the example of a version beside its verified model files.

    If the workspace has the test images that `evaluate` judged the version by, the example is the first of them, with
    the probabilities of its evaluation. Elsewhere, it is MLflow's example (a validation image), with the
    probabilities that the model gives in this process.

    Args:
        folder: has model.tflite and contract.json.
        example: MLflow's `serving_input_example.json`.
        outputs: of the workspace.
    """
    found = _find_evaluated(client, version, outputs)
    if found is None:
        contract = read_contract(folder / CONTRACT_FILE)
        images = np.array(json.loads(example.read_bytes())["inputs"], np.uint8)
        found = images, class_probabilities(interpreter.load(folder / LITERT_FILE, contract).predict(images))
    np.savez(folder / EXAMPLE_FILE, images=found[0], probabilities=found[1].astype(np.float32))


def _find_evaluated(
    client: "MlflowClient", version: "ModelVersion", outputs: Outputs
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return test images and their probabilities from the evaluation of a version; None if they are not there."""
    split = outputs.split("test")
    digest, recorded = recorded_predictions(client, version)
    if recorded is None or not split.is_file() or file_digest(split, "md5") != digest:
        return None
    images, ids = next(table.stream(split)).images[:EVALUATED_IMAGES], table.read_ids(split)[:EVALUATED_IMAGES]
    places = {image: place for place, image in enumerate(recorded.ids)}
    if not places.keys() >= set(ids):
        return None
    return images, recorded.probabilities[[places[image] for image in ids]]

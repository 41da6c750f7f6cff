"""MLflow's logged models: the unchanged model files with its signature, an example and its requirements.

`mlflow.keras.log_model` would load TensorFlow and save the network again, which changes the file's digest. This module
writes the same directory around the existing file, so that DVC, the run and the registry have one digest. A test
compares the directory with the output of the installed `mlflow.keras.save_model`.
"""

import json
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from pipeline.data import table
from pipeline.data.image_background import ground_of
from pipeline.files import file_digest
from pipeline.models.contract import CONTRACT_FILE, INT8_FILE, KERAS_FILE, LITERT_FILE
from pipeline.tracking.queries import find_or_none
from pipeline.tracking.stage_outputs import CONTRACT, EXPORTED_MODEL, INT8_MODEL, MODEL, Outputs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

# Tags of a run, a logged model or a version: digests of the model's files. Without a contract, only the first is set.
MODEL_TAG, EXPORTED_TAG, CONTRACT_TAG = "model.sha256", "model.tflite.sha256", "contract.sha256"
INT8_TAG = "model.int8.tflite.sha256"  # if the model was quantized
GROUND_TAG = "data.ground"  # of a logged model: JSON, the ground of its training images
MODEL_FOLDER = "data"  # inside a logged model
MODEL_FILES = {  # inside a logged model
    MODEL_TAG: f"{MODEL_FOLDER}/{KERAS_FILE}",
    EXPORTED_TAG: f"{MODEL_FOLDER}/{LITERT_FILE}",
    CONTRACT_TAG: f"{MODEL_FOLDER}/{CONTRACT_FILE}",
    INT8_TAG: f"{MODEL_FOLDER}/{INT8_FILE}",
}
OUTPUT_PATHS = {  # in a workspace
    MODEL_TAG: MODEL,
    EXPORTED_TAG: EXPORTED_MODEL,
    CONTRACT_TAG: CONTRACT,
    INT8_TAG: INT8_MODEL,
}
REQUIREMENTS = ("mlflow", "keras", "numpy", "tensorflow")
BUILD_PACKAGES = ("pip", "setuptools", "wheel")


def find(client: "MlflowClient", run: "Run") -> "LoggedModel | None":
    """Find the finished model of a run. Returns None if there is none, or it was deleted or never completed."""
    for output in reversed(run.outputs.model_outputs if run.outputs else []):
        model = get(client, output.model_id)
        if model is not None and str(model.status) == "READY":
            return model
    return None


def get(client: "MlflowClient", model_id: str) -> "LoggedModel | None":
    """Load a logged model by its id. Returns None if it was deleted."""
    return find_or_none(client.get_logged_model, model_id)


def digest_tags(outputs: Outputs) -> dict[str, str]:
    """Tags with the digests of the workspace's model files.

    Raises:
        ModelError: the contract is damaged.
    """
    return {tag: file_digest(file) for tag, file in _find_files(outputs).items()}


def _find_files(outputs: Outputs) -> dict[str, Path]:
    """The files of the workspace's model, by the tag with their digest."""
    contract = outputs.contract()
    tags = [tag for tag in OUTPUT_PATHS if tag != INT8_TAG or contract.int8] if contract else [MODEL_TAG]
    return {tag: outputs.root / OUTPUT_PATHS[tag] for tag in tags}


def create(client: "MlflowClient", run: "Run", outputs: Outputs) -> "LoggedModel":
    """Log a workspace's model file as the model of a run."""
    from mlflow.entities import LoggedModelOutput

    digests = digest_tags(outputs)
    ground = ground_of(table.read_dataset(outputs.split("validation")), _first_images(outputs))
    model = client.create_logged_model(
        run.info.experiment_id,
        name=f"model-{digests[MODEL_TAG][:8]}",
        source_run_id=run.info.run_id,
        tags={**digests, GROUND_TAG: json.dumps(ground)},
        params=run.data.params,
        model_type="classifier",
    )
    with tempfile.TemporaryDirectory() as scratch:
        write_model(
            Path(scratch), outputs, model_id=model.model_id, run_id=run.info.run_id, location=model.artifact_location
        )
        client.log_model_artifacts(model.model_id, scratch)
    model = client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def write_model(
    directory: Path,
    outputs: Outputs,
    *,
    model_id: str | None = None,
    run_id: str | None = None,
    location: str | None = None,
) -> None:
    """Write the directory that `mlflow.keras.load_model` and `mlflow.pyfunc.load_model` read.

    The model takes uint8 [-1, *shape] and returns float32 [-1, classes], or [-1, 1] for a yes-or-no task. The
    example is the first validation image.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    dataset = table.read_dataset(outputs.split("validation"))
    settings = outputs.settings()
    units = 1 if settings["loss"] == "binary_crossentropy" else len(settings["classes"])
    image = _first_images(outputs)[:1]

    (directory / MODEL_FOLDER).mkdir(parents=True)
    for tag, file in _find_files(outputs).items():
        shutil.copyfile(file, directory / MODEL_FILES[tag])
    (directory / MODEL_FOLDER / "keras_module.txt").write_text("keras")
    (directory / "input_example.json").write_text(json.dumps(image.tolist()))
    (directory / "serving_input_example.json").write_text(json.dumps({"inputs": image.tolist()}, indent=2))

    model = Model(
        artifact_path=location,
        run_id=run_id,
        model_id=model_id,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, *dataset.shape))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, units))]),
        ),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        },
        **({"model_uuid": model_id} if model_id else {}),
    )
    model.add_flavor(
        "keras",
        data=MODEL_FOLDER,
        keras_version=version("keras"),
        keras_backend="tensorflow",
        save_exported_model=False,
    )
    pyfunc.add_to_model(model, loader_module="mlflow.keras", conda_env="conda.yaml", python_env="python_env.yaml")
    model.model_size_bytes = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    model.save(str(directory / "MLmodel"))
    _write_environment(directory)


def _first_images(outputs: Outputs) -> np.ndarray:
    """Read the first row group of validation images, which come from the training images: uint8 [n, *shape]."""
    return next(table.stream(outputs.split("validation"))).images


def _write_environment(directory: Path) -> None:
    """Write the pinned requirements in the three formats that MLflow reads: pip, virtualenv and conda."""
    python = platform.python_version()
    requirements = [f"{package}=={version(package)}" for package in REQUIREMENTS]
    (directory / "requirements.txt").write_text("\n".join(requirements))
    build = [f"{package}=={version(package)}" if _is_installed(package) else package for package in BUILD_PACKAGES]
    environment = {"python": python, "build_dependencies": build, "dependencies": ["-r requirements.txt"]}
    (directory / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False))
    conda = {
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", build[0].replace("==", "<="), {"pip": requirements}],
        "name": "mlflow-env",
    }
    (directory / "conda.yaml").write_text(yaml.safe_dump(conda))


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False

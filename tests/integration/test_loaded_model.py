"""The registered model, loaded where none of our code is."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.files import file_digest, read_json
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import Project

EXPORTED = {"data/model.tflite", "data/contract.json"}
pytestmark = pytest.mark.xdist_group("loaded model")  # it is loaded once

# Arguments: the store, the model file of the workspace, a Parquet file of images, a directory to write to.
CONSUMER = """
import json, os, sys
import keras, mlflow, numpy as np, pyarrow.parquet as pq

store, file, images, directory = sys.argv[1:]
mlflow.set_tracking_uri(store)
pixels = pq.read_table(images).column("image").combine_chunks()
x = np.frombuffer(pixels.buffers()[1], np.uint8).reshape(-1, 28, 28)[:500]

direct = keras.saving.load_model(file)
native = mlflow.keras.load_model("models:/tiny@champion")
generic = mlflow.pyfunc.load_model("models:/tiny@champion")
expected = direct.predict(x, verbose=0)

signature = generic.metadata.signature
os.mkdir(directory + "/stock")
mlflow.keras.save_model(
    direct, directory + "/stock", signature=signature, input_example=generic.input_example,
    pip_requirements=open(directory + "/requirements.txt").read().split(),
)
print(json.dumps({
    "ours": [name for name in sys.modules if name.split(".")[0] in ("pipeline", "tests")],
    "answers": expected.tolist(),
    "native": bool((native.predict(x, verbose=0) == expected).all()),
    "generic": bool((generic.predict(x) == expected).all()),
    "dtype": str(generic.predict(x).dtype),
    "optimizer": native.optimizer.get_config(),
    "same optimizer": native.optimizer.get_config() == direct.optimizer.get_config(),
    "loss": keras.saving.serialize_keras_object(native.loss) if not isinstance(native.loss, str) else native.loss,
    "inputs": [list(map(int, spec.shape)) + [str(spec.type)] for spec in signature.inputs.inputs],
    "outputs": [list(map(int, spec.shape)) + [str(spec.type)] for spec in signature.outputs.inputs],
    "example": np.asarray(generic.input_example).shape,
}, default=float))
"""


@pytest.fixture(scope="module")
def logged(template: Project) -> Path:
    """The directory of the model that the template's champion is."""
    with closing(sqlite3.connect(template.path / "mlflow.db")) as store:
        ((location,),) = store.execute("SELECT storage_location FROM model_versions").fetchall()
    return Path(location.removeprefix("file://"))


@pytest.fixture(scope="module")
def loaded(template: Project, logged: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a process without our code found, and the directory in which it saved the model by MLflow's own means."""
    directory = tmp_path_factory.mktemp("elsewhere")
    (directory / "requirements.txt").write_text((logged / "requirements.txt").read_text())
    outputs = Outputs(template.path)
    arguments = [f"sqlite:///{template.path}/mlflow.db", outputs.model, outputs.split("test"), directory]
    process = subprocess.run(
        [sys.executable, "-P", "-c", CONSUMER, *map(str, arguments)],
        cwd=directory,
        env={name: value for name, value in template.environment.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1]), directory / "stock"


def test_it_needs_no_code_of_ours(loaded: tuple[dict[str, Any], Path]) -> None:
    assert loaded[0]["ours"] == []


def test_it_is_the_file_that_the_stage_wrote(template: Project, logged: Path) -> None:
    assert file_digest(logged / "data/model.keras") == file_digest(Outputs(template.path).model)


def test_the_exported_model_and_its_contract_are_beside_it(template: Project, logged: Path) -> None:
    for name in EXPORTED:
        assert file_digest(logged / name) == file_digest(template.path / "models" / Path(name).name)


def test_it_answers_as_before_it_was_saved(template: Project, loaded: tuple[dict[str, Any], Path]) -> None:
    found, _ = loaded
    assert found["native"]
    assert found["generic"]
    assert found["dtype"] == "float32"
    predictions = pq.read_table(Outputs(template.path).evaluation / "predictions.parquet")
    before = np.array(predictions.column("probabilities").to_pylist())
    assert np.abs(before - np.array(found["answers"])).max() < 1e-6


def test_it_keeps_the_configuration_of_its_optimizer(template: Project, loaded: tuple[dict[str, Any], Path]) -> None:
    found, _ = loaded
    assert found["same optimizer"]
    assert found["optimizer"]["name"] == Outputs(template.path).settings()["optimizer"]


def test_its_signature_tells_what_it_takes_and_answers(loaded: tuple[dict[str, Any], Path]) -> None:
    found, _ = loaded
    assert found["inputs"] == [[-1, 28, 28, "uint8"]]
    assert found["outputs"] == [[-1, 10, "float32"]]
    assert found["example"] == [1, 28, 28]


def test_its_directory_is_the_one_that_mlflow_would_write(logged: Path, loaded: tuple[dict[str, Any], Path]) -> None:
    """All but the model files, which MLflow would save again or not at all, and what tells one model from the next."""
    _, stock = loaded
    assert _files(logged) == _files(stock) | EXPORTED
    for name in _files(stock) - {"MLmodel", "data/model.keras"}:
        assert (logged / name).read_text() == (stock / name).read_text(), name
    ours, theirs = (yaml.safe_load((directory / "MLmodel").read_text()) for directory in (logged, stock))
    its_own = {"artifact_path", "model_id", "model_uuid", "run_id", "model_size_bytes", "utc_time_created"}
    assert {key: value for key, value in ours.items() if key not in its_own} == {
        key: value for key, value in theirs.items() if key not in its_own
    }


def test_its_requirements_are_pinned_to_what_is_installed(template: Project, logged: Path) -> None:
    requirements = dict(line.split("==") for line in (logged / "requirements.txt").read_text().split())
    assert {"keras", "tensorflow", "mlflow", "numpy"} == requirements.keys()
    lock = (template.path / "requirements.lock").read_text().splitlines()
    for package, number in requirements.items():
        assert any(line.split(" ")[0] == f"{package}=={number}" for line in lock), package


def test_its_run_names_it(template: Project, logged: Path) -> None:
    recorded = yaml.safe_load((logged / "MLmodel").read_text())
    assert recorded["model_id"] == logged.parent.name
    assert read_json(template.path / "reports/registration.json")["model"] == file_digest(logged / "data/model.keras")


def _files(directory: Path) -> set[str]:
    """All but the note that MLflow leaves in a local model's directory when it is loaded from the registry."""
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    return files - {"registered_model_meta"}

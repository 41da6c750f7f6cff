"""`pipeline export`, for a version that was registered before there were exported models."""

import json
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data import table
from pipeline.models.contract import read_contract
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import Project

TAGS = ("contract.sha256", "model.tflite.sha256")
TABLES = ("model_version_tags", "logged_model_tags", "tags")


def forget_exported_model(project: Project) -> Path:
    """Leave of the registered model what release 0.1.0 recorded. Returns the folder of its files."""
    (file,) = (project.path / "mlruns").rglob("data/model.keras")
    for name in ("model.tflite", "contract.json"):
        (file.parent / name).unlink()
    with closing(sqlite3.connect(project.path / "mlflow.db")) as database, database:
        for name in TABLES:
            column = "tag_key" if name == "logged_model_tags" else "key"
            database.execute(f"DELETE FROM {name} WHERE {column} IN (?, ?)", TAGS)
    return file.parent


def predict(project: Project, picture: Path) -> dict[str, float]:
    found: dict[str, Any] = json.loads(project.run("pipeline", "predict", str(picture), "--json").stdout)
    return {one["class"]: one["probability"] for one in found["predictions"][0]["classes"]}


def measure_latency(project: Project) -> float:
    """Milliseconds for one image, by `pipeline compare` of the version with itself."""
    compared = json.loads(project.run("pipeline", "compare", "1", "champion", "--latency", "--json").stdout)
    assert compared["gained"] == compared["lost"] == 0
    first, second = compared["latency_ms"]
    return float(min(first["one"], second["one"]))


def assert_consistent(project: Project) -> None:
    if find_spec("pipeline.audit"):  # a project may be without this room
        assert "all agree" in project.run("pipeline", "verify").stdout


def test_a_version_without_an_exported_model_answers_and_is_exported(trained: Project, tmp_path: Path) -> None:
    images, _ = table.read_images(Outputs(trained.path).split("test"))
    picture = tmp_path / "picture.png"
    Image.fromarray(images[0]).save(picture)
    before = predict(trained, picture)
    folder = forget_exported_model(trained)
    keras = (folder / "model.keras").read_bytes()
    assert predict(trained, picture) == before  # by TensorFlow
    assert measure_latency(trained) > 0
    assert_consistent(trained)

    validation = Outputs(trained.path).split("validation")
    aside = validation.rename(tmp_path / "validation.parquet")
    refused = trained.run("pipeline", "export", "champion", check=False)
    assert refused.returncode == 1
    assert "its validation images are not here" in refused.stdout
    assert "dvc checkout data/splits/validation.parquet" in refused.stdout
    assert not (folder / "model.tflite").exists()
    aside.rename(validation)

    assert "tiny version 1 is exported" in trained.run("pipeline", "export", "champion").stdout
    assert (folder / "model.keras").read_bytes() == keras
    assert (folder / "model.tflite").read_bytes() == Outputs(trained.path).exported_model.read_bytes()
    assert read_contract(folder / "contract.json") == read_contract(Outputs(trained.path).contract_file)
    assert predict(trained, picture) == before
    assert measure_latency(trained) > 0
    assert "has an exported model already" in trained.run("pipeline", "export", "1").stdout
    assert_consistent(trained)
    with closing(sqlite3.connect(trained.path / "mlflow.db")) as database:
        tags = dict(database.execute("SELECT key, value FROM model_version_tags"))
    assert {"exported.at", "exported.by", *TAGS} <= tags.keys()

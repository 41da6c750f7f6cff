"""`pipeline predict`, asked by a project's user; and a project folder that was moved, which still answers."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.evaluation.predictions import PREDICTIONS, read_predictions
from pipeline.files import file_digest
from pipeline.registry.version_for_prediction import find_ground
from pipeline.tracking.logged_models import GROUND_TAG
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import REPOSITORY, Project


def addresses(database: Path) -> list[str]:
    """Every text in a database, wherever it stands."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [
            value
            for name in tables
            for row in connection.execute(f"SELECT * FROM {name}")
            for value in row
            if isinstance(value, str)
        ]


def test_a_moved_project_answers_as_its_evaluation_recorded(trained: Project, tmp_path: Path) -> None:
    moved = Project(trained.path.rename(tmp_path / "moved 옷"), trained.home)
    assert f"comes from {trained.path}" in moved.run("pipeline", "versions").stdout
    assert not [text for text in addresses(moved.path / "mlflow.db") if str(trained.path) in text]
    assert "comes from" not in moved.run("pipeline", "versions").stdout  # once

    outputs = Outputs(moved.path)
    images, _ = table.read_images(outputs.split("test"))
    kept = read_predictions(outputs.evaluation / PREDICTIONS).in_order_of(table.read_ids(outputs.split("test")))
    Image.fromarray(images[0]).save(tmp_path / "first.png")
    np.savez(tmp_path / "more.npz", images=images[1:3])
    np.savez(tmp_path / "torn.npz", images=images[1:3])
    (tmp_path / "torn.npz").write_bytes((tmp_path / "torn.npz").read_bytes()[:300])
    Image.fromarray(np.pad(255 - images[0], ((0, 0), (14, 14)), constant_values=255)).save(tmp_path / "wide.png")
    answer = json.loads(moved.run("pipeline", "predict", "../first.png", "../more.npz", "../wide.png", "--json").stdout)
    assert (answer["name"], answer["version"], answer["aliases"]) == ("tiny", "1", ["champion"])
    *found, wide = answer["predictions"]
    assert [one["image"] for one in found] == ["../first.png", "../more.npz[0]", "../more.npz[1]"]
    assert [one["notes"] for one in found] == [[], [], []]
    assert wide["notes"][0] == "resized from 28 x 56 to 28 x 28"  # with the recorded ground around it
    assert wide["notes"][1].endswith("that of the training images 0: try it with --invert")
    for one, probabilities in zip(found, kept.probabilities, strict=False):
        by_class = {of["class"]: of["probability"] for of in one["classes"]}
        assert [by_class[name] for name in kept.classes] == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert one["classes"][0]["probability"] == max(by_class.values())
    refused = moved.run("pipeline", "predict", "../torn.npz", check=False)
    assert refused.returncode == 1
    assert "torn.npz is damaged" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert {of["class_ko"] for of in answer["predictions"][0]["classes"]} >= {"바지", "발목 부츠"}

    run = next((moved.path / "mlruns").rglob("data/model.tflite"))
    run.write_bytes(run.read_bytes() + b"?")
    refused = moved.run("pipeline", "predict", "../first.png", check=False)
    assert refused.returncode == 1
    assert "its model file was altered" in refused.stdout


def test_the_ground_is_recorded_or_measured_on_the_same_images_or_unknown(tmp_path: Path) -> None:
    """Models registered without the tag, with and without their training images in the workspace."""
    from mlflow.entities import LoggedModel, LoggedModelStatus
    from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

    images, labels = tiny.generate(20, seed=7)
    split = Outputs(tmp_path).split("train")
    with table.writer(split, load_entry("tiny", REPOSITORY / "data/catalog").dataset) as rows:
        rows.write(255 - images, labels, *(table.strings([text] * 20) for text in ("id", "official")))

    def find(split_digest: str, **tags: str) -> int | None:
        version = ModelVersion("tiny", "1", 0, tags=[ModelVersionTag("data.train", split_digest)])
        model = LoggedModel("0", "m", "m", str(tmp_path), 0, 0, status=LoggedModelStatus.READY, tags=tags)
        return find_ground(tmp_path, version, model)

    assert find("another", **{GROUND_TAG: "7"}) == 7
    assert find(file_digest(split, "md5")) == 255
    assert find("another") is None
    split.unlink()
    assert find("another") is None

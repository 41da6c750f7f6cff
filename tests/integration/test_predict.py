"""`pipeline predict`, asked by a project's user; and a project folder that was moved, which still answers."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import table
from pipeline.reports.predictions import PREDICTIONS, read_predictions
from pipeline.tracking.outputs import Outputs
from tests.conftest import Project


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
    told = moved.run("pipeline", "verify").stdout
    assert f"comes from {trained.path}" in told
    assert "all agree" in told
    assert not [text for text in addresses(moved.path / "mlflow.db") if str(trained.path) in text]
    assert "comes from" not in moved.run("pipeline", "versions").stdout  # once

    outputs = Outputs(moved.path)
    images, _ = table.read_images(outputs.split("test"))
    kept = read_predictions(outputs.evaluation / PREDICTIONS).in_order_of(table.read_ids(outputs.split("test")))
    Image.fromarray(images[0]).save(tmp_path / "first.png")
    np.savez(tmp_path / "more.npz", images=images[1:3])
    answer = json.loads(moved.run("pipeline", "predict", "../first.png", "../more.npz", "--json").stdout)
    assert (answer["name"], answer["version"], answer["aliases"]) == ("tiny", "1", ["champion"])
    assert [found["image"] for found in answer["predictions"]] == ["../first.png", "../more.npz[0]", "../more.npz[1]"]
    for found, probabilities in zip(answer["predictions"], kept.probabilities, strict=False):
        by_class = {of["class"]: of["probability"] for of in found["classes"]}
        assert [by_class[name] for name in kept.classes] == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert found["classes"][0]["probability"] == max(by_class.values())
    assert {of["class_ko"] for of in answer["predictions"][0]["classes"]} >= {"바지", "발목 부츠"}

    run = next((moved.path / "mlruns").rglob("data/model.keras"))
    run.write_bytes(run.read_bytes() + b"?")
    refused = moved.run("pipeline", "predict", "../first.png", check=False)
    assert refused.returncode == 1
    assert "its model file was altered" in refused.stdout

"""`pipeline gc` on a real project: versions can still be verified, loaded and checked out."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Project

pytestmark = pytest.mark.faults


def test_only_a_rejected_training_is_deleted(trained: Project) -> None:
    trained.set_params(**{"train.seed": 2, "evaluate.min_accuracy": 1.0})
    trained.repro()
    trained.run("git", "checkout", "--quiet", ".")
    trained.repro()  # back to the champion, from the cache
    moves = trained.run("pipeline", "history", "--json").stdout
    models = trained.path / "mlruns/tiny/models"
    before = {path.name for path in models.iterdir()}

    told = trained.run("pipeline", "gc", "--keep-runs", "0", "--yes").stdout
    (rejected,) = before - {path.name for path in models.iterdir()}
    assert rejected in told

    assert "all agree" in trained.run("pipeline", "verify").stdout
    assert trained.run("pipeline", "history", "--json").stdout == moves
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(trained.path / "black.png")
    answer = json.loads(trained.run("pipeline", "predict", "black.png", "--json").stdout)
    assert (answer["version"], answer["aliases"]) == ("1", ["champion"])
    (trained.path / "models/model.keras").unlink()
    trained.run("dvc", "checkout")  # all that the commit refers to is in the cache
    assert (trained.path / "models/model.keras").is_file()

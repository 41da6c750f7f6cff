"""Months of a real project: after `pipeline gc` every version is verified, rolled back to, asked, checked out."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Project

pytestmark = pytest.mark.faults


def test_nothing_that_is_needed_goes(trained: Project) -> None:
    trained.set_params(**{"train.seed": 2})
    trained.commit("another seed")
    trained.repro()
    trained.commit("its outputs")
    trained.run("pipeline", "promote", "2", "--reason", "to be rolled back")
    trained.set_params(**{"train.seed": 3, "evaluate.min_accuracy": 1.0})
    trained.repro()
    trained.run("git", "checkout", "--quiet", ".")
    trained.repro()  # back to version 2, from the cache
    moves = trained.run("pipeline", "history", "--json").stdout
    rejected = {path.name for path in (trained.path / "mlruns/tiny/models").iterdir()}

    told = trained.run("pipeline", "gc", "--keep-runs", "0", "--yes").stdout
    assert "MLflow runs" in told
    assert "MB" in told or "kB" in told
    assert len(rejected - {path.name for path in (trained.path / "mlruns/tiny/models").iterdir()}) == 1

    assert "all agree" in trained.run("pipeline", "verify").stdout
    assert trained.run("pipeline", "history", "--json").stdout == moves
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(trained.path / "black.png")
    for version in ("2", "1"):
        answer = json.loads(trained.run("pipeline", "predict", "black.png", "--json").stdout)
        assert answer["version"] == version
        commit = trained.run("pipeline", "lineage", version, "--json").stdout
        assert "git" in commit
        if version == "2":
            trained.run("pipeline", "rollback", "--reason", "worse on bags")
    first = trained.run("git", "rev-list", "--max-count=1", "HEAD~2").stdout.strip()
    trained.run("git", "checkout", "--quiet", first)
    trained.run("dvc", "checkout")  # of the first version's commit: its outputs are all there

"""A retraining with the real stages: judged by the user's registry, from a commit in the user's repository."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import tiny
from pipeline.retraining.branches import VERSION
from tests.conftest import Project
from tests.e2e import light
from tests.e2e.test_repro import aliases_of, runs_of


@pytest.mark.faults
def test_a_retraining_takes_in_a_batch_and_is_judged(trained: Project) -> None:
    incoming = trained.path / "data/incoming"
    images, labels = tiny.generate(200, seed=7)
    np.savez(incoming / "march.npz", images=images, labels=labels)
    (trained.path / "params.yaml").write_text("an edit in progress: [")
    before = trained.run("git", "status", "--porcelain").stdout
    command = ("python", "-m", "pipeline.cli", "retrain", "--set", "train.epochs=12", "--json")
    output = trained.run(*command).stdout
    result = json.loads(output[output.index("\n{") :])
    assert result["outcome"] in ("champion", "challenger")  # twelve epochs against three
    assert (result["version"], result["taken"]) == ("2", ["march.npz"])
    assert aliases_of(trained)["tiny", result["outcome"]] == "2"
    assert "FINISHED" in [status for _, status in runs_of(trained)]
    assert list((trained.path / ".pipeline/retrainings").iterdir()) == []
    assert trained.run("git", "status", "--porcelain").stdout == before

    trained.run("git", "checkout", "--quiet", "params.yaml")
    listed = json.loads(trained.run("python", "-m", "pipeline.cli", "versions", "--json").stdout)["versions"]
    first = trained.run("git", "rev-parse", f"{result['branch']}~1").stdout.strip()
    assert [version["commit"] for version in listed if version["number"] == 2] == [first]

    trailer = f"--format=%(trailers:key={VERSION},valueonly)"
    assert trained.run("git", "log", "-1", trailer, result["branch"]).stdout.strip() == "tiny/2"
    (incoming / "march.npz").unlink()
    (trained.path / "README.md").write_text("a new sentence")
    trained.commit()
    output = trained.run("python", "-m", "pipeline.cli", "retrain", "--json").stdout
    again = json.loads(output[output.index("\n{") :])
    assert (again["outcome"], again["version"]) == ("not promoted", "1")  # the user trained it before
    assert "which existed before this retraining" in again["reason"]


def test_a_retraining_reports_its_promotion_although_the_stores_clock_is_behind(tmp_path: Path) -> None:
    project = light.build(tmp_path / "project", tmp_path / "home")
    project.repro()
    project.commit("lock")
    with closing(sqlite3.connect(project.path / "mlflow.db")) as store, store:
        store.execute(
            "CREATE TRIGGER behind AFTER INSERT ON model_versions BEGIN "
            "UPDATE model_versions SET creation_time = 1000, last_updated_time = 1000; END"
        )
    output = project.run("pipeline", "retrain", "--set", "train.seed=3", "--json").stdout
    assert '"outcome": "champion"' in output
    assert aliases_of(project) == {("tiny", "champion"): "2"}

"""The champion rule through `dvc repro` on `tiny`: the better model is promoted, the worse one is not.

Other test images have the champion asked again.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.conftest import Project, stages_that_ran
from tests.e2e import light
from tests.e2e.test_repro import aliases_of, ledger_of, versions_of

pytestmark = pytest.mark.faults


def decisions_of(project: Project) -> dict[str, str]:
    """Decision by version."""
    with closing(sqlite3.connect(project.path / "mlflow.db")) as store:
        rows = store.execute("SELECT version, value FROM model_version_tags WHERE key = 'decision'").fetchall()
    return {str(version): value for version, value in rows}


def test_a_better_model_is_promoted_a_worse_one_is_not_and_a_champion_is_asked_again(trained: Project) -> None:
    trained.set_params(**{"train.epochs": 12, "register.alpha": 0.05})
    output = trained.repro().stdout
    assert "Version 2 takes the place of version 1" in output
    assert aliases_of(trained) == {("tiny", "champion"): "2"}

    # More test images under the same name: the champion's stored answers are of other ones.
    file = trained.path / "data/catalog/tiny.yaml"
    facts = yaml.safe_load(file.read_text()) | {"test": 600}
    file.write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    trained.set_params(**{"train.epochs": 3, "train.seed": 3})
    output = trained.repro().stdout
    assert stages_that_ran(output)[-1] == "register"
    assert "version 2 was evaluated on other test images: predicting with its model file" in output
    assert "challenger 1 on these 600 test images" in output
    assert "Version 3 is not promoted" in output
    assert aliases_of(trained) == {("tiny", "champion"): "2"}
    assert decisions_of(trained) == {"1": "champion", "2": "champion", "3": "not promoted"}

    refused = trained.run("pipeline", "compare", "champion", "1", "--json", "--figure", "differences.png", check=False)
    assert refused.returncode == 1  # both were evaluated on the former test images, which are not here to be drawn
    assert "does not hold the images that these versions were judged on" in refused.stdout
    assert not (trained.path / "differences.png").exists()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with stages that do next to nothing, and a champion."""
    project = light.build(tmp_path / "project", tmp_path / "home")
    project.repro()
    project.commit("lock")
    return project


def test_an_experiment_aside_is_judged_once_it_is_applied_and_run(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "--temp", "--name", "better", "-S", "train.seed=3").stdout
    assert "To have it judged: dvc exp apply better, then pipeline run" in output
    assert (versions_of(project), ledger_of(project)) == (["1"], [])
    project.run("dvc", "exp", "apply", "better")
    assert stages_that_ran(project.repro().stdout) == ["register"]
    assert (versions_of(project), ledger_of(project)) == (["1", "2"], ["1"])
    assert aliases_of(project) == {("tiny", "champion"): "2"}

"""The commands of docs/search.md on `tiny`: sweeps that repeat, reuse, confirm and apply, beside the workspace."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from pipeline.search import apply as application
from tests.conftest import REPOSITORY, Project
from tests.documentation import read_blocks

OUTPUTS = ("models", "reports", "dvc.lock", "data/splits")
SPACE = {
    "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "widths": {"choices": [[16], [32]]},
    "shift": {"low": 0, "high": 2, "when": {"network": "cnn"}},
}


def digest(project: Project) -> str:
    paths = [path for name in OUTPUTS for path in [project.path / name, *(project.path / name).rglob("*")]]
    files = sorted(path for path in paths if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def shown(project: Project, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(project.run("pipeline", "sweep", "show", name, "--json").stdout)
    return content


@pytest.fixture(scope="module")
def swept(template: Project, shared: Callable[[str, Callable[[Path], Any]], Path]) -> Project:
    """A project in which the commands of the page have run. `before`: the digest of its outputs until then."""

    def build(path: Path) -> None:
        project = template.copy_to(path / "project")
        project.set_params(**{"sweep.space": SPACE, "sweep.pruner": "none"})
        (path / "before").write_text(digest(project))
        (commands,) = read_blocks("docs/search.md")
        log = [project.run(*command.split()).stdout for command in commands.splitlines()]
        (path / "log").write_text("\n".join(log))

    path = shared("swept", build)
    return Project(path / "project", path / "project-home")


def test_the_page_runs_and_only_params_yaml_changes(swept: Project) -> None:
    log = (swept.path.parent / "log").read_text()
    assert "best: trial" in log
    assert "4 of 4 trials: 4 complete" in log
    assert "params.yaml is written" in log
    assert digest(swept) == (swept.path.parent / "before").read_text()
    changed = swept.run("git", "status", "--porcelain").stdout.split()
    assert changed == ["M", "params.yaml"]


def test_the_json_has_every_trial_and_the_best(swept: Project) -> None:
    content = shown(swept, "first")
    assert [trial["number"] for trial in content["trials"]] == [0, 1, 2, 3]
    for trial in content["trials"]:
        assert trial["params"].keys() == {"learning_rate", "widths"}  # `shift` is for the cnn
        assert (trial["state"], trial["reused"]) == ("complete", False)
    best = max(content["trials"], key=lambda trial: (trial["validation_accuracy"], -trial["number"]))
    assert content["best"] == best["number"] == content["within_noise"][0]
    assert content["cpu_seconds"] > 0


def test_applied_params_train_the_model_of_the_best_trial(swept: Project, tmp_path: Path) -> None:
    project, content = swept.copy_to(tmp_path / "project"), shown(swept, "first")
    best = content["trials"][content["best"]]
    train = yaml.safe_load((project.path / "params.yaml").read_text())["train"]
    assert {key: train[key] for key in best["params"]} == best["params"]
    project.run(sys.executable, "-m", "pipeline.stages.train")
    model = hashlib.sha256((project.path / "models/model.keras").read_bytes()).hexdigest()
    assert model == best["model_sha256"]


def test_a_sweep_with_other_params_or_data_is_refused(swept: Project, tmp_path: Path) -> None:
    project = swept.copy_to(tmp_path / "project")
    project.set_params(**{"train.epochs": 1})
    refused = project.run("pipeline", "sweep", "--name", "first", check=False)
    assert refused.returncode == 1
    assert "differences in train of params.yaml" in refused.stdout
    (project.path / "data/splits/validation.parquet").unlink()
    refused = project.run("pipeline", "sweep", "--join", "first", check=False)
    assert refused.returncode == 1
    assert "pipeline run --until split" in refused.stdout
    assert "no sweep other" in project.run("pipeline", "sweep", "show", "other", check=False).stdout


def test_mlflow_has_a_run_with_plots_and_one_nested_for_each_trial(swept: Project) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{swept.path / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "tiny")
    runs = client.search_runs([experiment.experiment_id], "tags.sweep = 'first'")
    (parent,) = (run for run in runs if "trial" not in run.data.tags)
    plots = {"history.png", "importance.png", "slice.png", "parallel_coordinates.png"}
    assert plots | {"sweep.json", "sweep.md"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
    trials = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
    assert trials.keys() == {"0", "1", "2", "3"}
    for trial in shown(swept, "first")["trials"]:
        run = trials[str(trial["number"])]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.metrics["validation_accuracy"] == trial["validation_accuracy"]
        assert len(client.get_metric_history(run.info.run_id, "loss")) == trial["epoch"] == 3


def test_the_change_of_params_yaml_keeps_the_rest() -> None:
    before = (REPOSITORY / "params.yaml").read_text()
    changes = application.describe_changes(before, before.replace("  widths: null", "  widths: [64]"))
    assert [line for line in changes.splitlines() if line[0] in "+-"][2:] == ["-  widths: null", "+  widths: [64]"]

"""`pipeline report` on a real repository: what differs, which decision would be made, and that nothing is changed."""

import re
import shutil
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.predictions import Predictions, read_predictions, write_predictions
from pipeline.files import read_json, write_json
from pipeline.tracking.stage_outputs import EVALUATION, MODEL, Outputs
from tests.conftest import Project

REPORT = (sys.executable, "-m", "pipeline.cli", "report", "--against")
GAINED = 40  # test images that only the new model gets right


def read_records(project: Project) -> str:
    """Return the content of the MLflow store."""
    with closing(sqlite3.connect(project.path / "mlflow.db")) as connection:
        return "\n".join(connection.iterdump())


def read_files(project: Project) -> dict[str, bytes]:
    """Contents of the checkout, except the tools' own state."""
    own = {".git", ".pipeline", "mlflow.db", "mlflow.db-journal"}
    files = [path for path in project.path.rglob("*") if path.is_file() and "tmp" not in path.parts]
    return {
        str(path.relative_to(project.path)): path.read_bytes()
        for path in files
        if path.relative_to(project.path).parts[0] not in own and "__pycache__" not in path.parts
    }


def improve(predictions: Predictions, images: int) -> Predictions:
    """The same predictions, with the right answer for some images that were wrong."""
    rows = np.flatnonzero(~predictions.correct)[:images]
    probabilities = predictions.probabilities.copy()
    probabilities[rows] = np.eye(len(predictions.classes))[predictions.labels[rows]]
    return replace(predictions, probabilities=probabilities)


@pytest.fixture
def changed(trained: Project) -> Project:
    """A project with another model than its last commit, as after an experiment: MLflow does not know the model."""
    outputs = Outputs(trained.path)
    predictions = read_predictions(outputs.evaluation / "predictions.parquet")
    write_changed(outputs.evaluation / "predictions.parquet", improve(predictions, GAINED))
    metrics = read_json(outputs.evaluation / "metrics.json")
    metrics["accuracy"] = float(improve(predictions, GAINED).correct.mean())
    make_writable(outputs.evaluation / "metrics.json")
    write_json(outputs.evaluation / "metrics.json", metrics)
    make_writable(outputs.model)
    outputs.model.write_bytes(outputs.model.read_bytes() + b"trained further")
    trained.set_params(**{"train.epochs": 4})
    code = trained.path / "pipeline/models/networks.py"
    code.write_text(code.read_text() + "\n")
    (trained.path / "notes.txt").write_text("read by no stage\n")
    trained.run("dvc", "commit", "--force", "train", "evaluate")
    return trained


def make_writable(path: Path) -> None:
    """Replace DVC's link into its cache by a copy."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def write_changed(path: Path, predictions: Predictions) -> None:
    path.unlink()
    write_predictions(path, predictions)


def test_a_change_is_reported_and_nothing_is_changed(changed: Project) -> None:
    commit = changed.run("git", "rev-parse", "HEAD").stdout.strip()
    before = read_files(changed), read_records(changed), changed.run("git", "status", "--short").stdout
    page = changed.path / "report.md"
    changed.run(*REPORT, "main", "--md", "--output", str(page))
    text = page.read_text()
    page.unlink()
    assert (read_files(changed), read_records(changed), changed.run("git", "status", "--short").stdout) == before
    assert not list((changed.path / ".pipeline/change-reports").iterdir())

    assert text.startswith(f"# tiny: this checkout against main ({commit[:10]})\n")
    assert "with uncommitted changes" in text
    decision = text[text.index("## Decision that would be made") : text.index("## Same test images")]
    # The fixture's alpha is so small that a gain of 40 of 500 images is not enough.
    assert re.search(rf"Version 2 .* right on {GAINED} images that version 1 gets wrong, wrong on 0", decision)
    assert "Against the champion, tiny version 1; this model would be version 2." in decision
    assert "of challenger 1 on these 500 test images" in decision
    images = read_json(changed.path / EVALUATION / "metrics.json")["images"]
    assert f"only main right 0, only this checkout right {GAINED}" in text
    assert re.search(rf"\| all classes \| {images} \|.*\| \+{100 * GAINED / images:.2f} \|", text)
    assert re.search(rf"\| test accuracy \| 0\.\d+ \| 0\.\d+ \| \+{GAINED / images:g}", text)
    assert "| train.epochs | 3 | 4 |" in text
    assert re.search(rf"\| train \| {re.escape(MODEL)} \| [0-9a-f]{{8}} \| [0-9a-f]{{8}} \|", text)
    assert "| data/dataset |" not in text
    assert re.search(r"\| train \| pipeline/models/networks.py \|", text)
    assert re.search(r"\| no stage \| notes.txt \|", text)
    assert "](<reports/evaluation/figures/confusion.png>)" in text


def test_without_a_registry_the_base_takes_the_champions_place(changed: Project) -> None:
    (changed.path / "mlflow.db").unlink()
    changed.set_params(**{"register.alpha": 0.05, "train.epochs": 4})
    printed = " ".join(changed.run(*REPORT, "HEAD").stdout.split())
    assert "The registry has no champion of this name: compared with the model of HEAD" in printed
    assert "champion (better) The model of this checkout takes the place of the model of HEAD" in printed
    assert "Out of date" not in printed  # `register` would run, and the report reads nothing of it
    assert not (changed.path / "mlflow.db").exists()

    shutil.rmtree(changed.path / ".dvc/cache")
    changed.set_params(**{"train.epochs": 5})
    printed = " ".join(changed.run(*REPORT, "HEAD").stdout.split())
    missing = r"There is no comparison: the predictions of HEAD .* neither in DVC's cache nor in a remote"
    assert re.search(missing, printed)
    assert re.search(r"Out of date: a run would run [a-z, ]*train, evaluate\.", printed)


def test_bad_input_is_refused(trained: Project) -> None:
    trained.run("git", "checkout", "--quiet", "-b", "bare")
    trained.run("git", "rm", "--quiet", "--cached", "dvc.lock")
    trained.run("git", "commit", "--quiet", "--message", "bare")
    trained.run("git", "checkout", "--quiet", "--force", "main")
    refuse(trained, "nowhere", "git has no such commit here")
    refuse(trained, "--help", "git has no such commit here")
    refuse(trained, "bare", "this commit has no dvc.lock")
    shutil.rmtree(trained.path / EVALUATION)
    refuse(trained, "main", "this checkout has no evaluated model")


def refuse(project: Project, reference: str, message: str) -> None:
    refused = project.run(*REPORT, reference, "--output", "report.txt", check=False)
    assert refused.returncode == 1
    assert message in refused.stdout
    assert not (project.path / "report.txt").exists()


@pytest.mark.faults
def test_the_script_of_a_pull_request_runs_both_commits_and_compares_them(trained: Project) -> None:
    trained.provide_environment()
    base = trained.run("git", "rev-parse", "HEAD").stdout.strip()
    trained.set_params(**{"train.epochs": 2})
    trained.commit("fewer epochs")
    shutil.rmtree(trained.path / "reports")
    trained.run(str(trained.path / ".ci/report"), base)
    text = (trained.path / "report.md").read_text()
    assert "| train.epochs | 3 | 2 |" in text
    assert re.search(r"\| all classes \| 500 \|", text)
    assert "lacks" not in text  # the commit that locks the base is no change
    (trained.path / "params.yaml").write_text("")
    refused = trained.run(str(trained.path / ".ci/report"), base, check=False)
    assert refused.returncode == 1
    assert "this checkout has uncommitted changes" in refused.stdout

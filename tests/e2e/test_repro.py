"""`dvc repro` through all six stages on the `tiny` dataset: which stages run, and what they leave."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from tests.conftest import STAGES, Project, stages_that_ran

OUTPUTS = [
    "data/raw",
    "data/dataset",
    "data/splits/train.parquet",
    "data/splits/validation.parquet",
    "data/splits/test.parquet",
    "reports/validation.json",
    "reports/split.json",
    "reports/training",
    "reports/evaluation",
    "models/model.keras",
    "models/model.tflite",
    "models/contract.json",
]

# `evaluate` in this process, and then the modules that it imported.
EVALUATE = """
import runpy, sys
runpy.run_module("pipeline.stages.evaluate", run_name="__main__")
print("imported:", sorted({"keras", "tensorflow", "ai_edge_litert"} & set(sys.modules)))
"""


def lock_of(project: Project) -> dict[str, dict[str, str]]:
    """The digests of every stage's outputs, as `dvc.lock` has them."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    return {stage: {out["path"]: out["md5"] for out in entry["outs"]} for stage, entry in lock["stages"].items()}


def stored(project: Project, digest: str) -> Path:
    """Where DVC's cache has it."""
    return project.path / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def runs_of(project: Project) -> list[tuple[str, str]]:
    """(run id, status) of every run of a stage or flow in the project's tracking store, oldest first."""
    query = "select run_uuid, status from runs join experiments using (experiment_id)"
    of_stages = "experiments.name not like '% history'"
    with sqlite3.connect(project.path / "mlflow.db") as store:
        return store.execute(f"{query} where {of_stages} order by start_time").fetchall()


def aliases_of(project: Project) -> dict[tuple[str, str], str]:
    """(registered name, alias) -> version."""
    with sqlite3.connect(project.path / "mlflow.db") as store:
        rows = store.execute("select name, alias, version from registered_model_aliases").fetchall()
    return {(name, alias): str(version) for name, alias, version in rows}


def run_names_of(project: Project) -> list[str]:
    """The names of the runs of trainings, oldest first."""
    query = "select name from runs join tags using (run_uuid) where key = 'model.sha256' order by start_time"
    with sqlite3.connect(project.path / "mlflow.db") as store:
        return [name for (name,) in store.execute(query)]


def versions_of(project: Project) -> list[str]:
    """The numbers of all registered versions."""
    with sqlite3.connect(project.path / "mlflow.db") as store:
        return [str(number) for (number,) in store.execute("select version from model_versions order by version")]


def ledger_of(project: Project) -> list[str]:
    """The places of all challengers that were judged."""
    with sqlite3.connect(project.path / "mlflow.db") as store:
        return [place for (place,) in store.execute("select value from tags where key like 'judged.%' order by value")]


def test_all_six_stages_run_and_register_the_first_model(template: Project) -> None:
    assert stages_that_ran((template.path.parent / "repro.log").read_text()) == list(STAGES)
    for output in OUTPUTS:
        assert (template.path / output).exists(), output
    metrics = json.loads((template.path / "reports/evaluation/metrics.json").read_text())
    assert metrics["accuracy"] > 0.7
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    assert json.loads((template.path / "reports/validation.json").read_text())["passed"] is True
    assert json.loads((template.path / "reports/registration.json").read_text())["name"] == "tiny"
    assert [status for _, status in runs_of(template)] == ["FINISHED"]
    assert aliases_of(template) == {("tiny", "champion"): "1"}


def test_a_second_run_finds_everything_up_to_date(trained: Project) -> None:
    output = trained.repro().stdout
    assert stages_that_ran(output) == []
    assert "up to date" in output
    assert len(runs_of(trained)) == 1


def test_the_exported_model_is_evaluated_without_tensorflow(trained: Project) -> None:
    output = trained.run("python", "-c", EVALUATE).stdout
    assert "imported: ['ai_edge_litert']" in output
    assert json.loads(trained.run("dvc", "status", "--json").stdout) == {}  # it wrote the same bytes


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("presets.cnn.epochs", 9, []),
        ("validate.max_blank_fraction", 0.002, ["validate", "split"]),
        ("register.first_model", "challenger", ["register"]),
    ],
)
def test_one_changed_parameter_reruns_exactly_the_stages_it_reaches(
    trained: Project, key: str, value: object, expected: list[str]
) -> None:
    trained.set_params(**{key: value})
    assert stages_that_ran(trained.repro().stdout) == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dataset.name", "mnist", "ingest"),
        ("split.seed", 9, "split"),
        ("presets.mlp.learning_rate", 0.0021, "train"),
        ("train.epochs", 2, "train"),
    ],
)
def test_one_changed_parameter_invalidates_exactly_one_stage(
    trained: Project, key: str, value: object, expected: str
) -> None:
    trained.set_params(**{key: value})
    assert list(json.loads(trained.run("dvc", "status", "--json").stdout)) == [expected]


def test_a_model_is_rejected_then_registered_and_the_former_one_restored(trained: Project) -> None:
    (first_run, _), *_ = runs_of(trained)
    trained.set_params(**{"train.seed": 2, "evaluate.min_accuracy": 1.0})
    output = trained.repro().stdout
    assert stages_that_ran(output) == ["train", "evaluate", "register"]
    assert "REJECTED" in output
    assert json.loads((trained.path / "reports/registration.json").read_text())["gate"] == "rejected"
    assert aliases_of(trained) == {("tiny", "champion"): "1"}
    assert [status for _, status in runs_of(trained)] == ["FINISHED", "FINISHED"]  # a rejection is no failure

    trained.set_params(**{"evaluate.min_accuracy": 0.85})
    assert stages_that_ran(trained.repro().stdout) == ["evaluate", "register"]
    assert aliases_of(trained) == {("tiny", "champion"): "1", ("tiny", "challenger"): "2"}

    trained.set_params(**{"train.seed": 1})
    output = trained.repro().stdout
    assert stages_that_ran(output) == ["register"]
    assert "Stage 'train' is cached" in output
    assert [run for run, _ in runs_of(trained)][:1] == [first_run]
    assert len(runs_of(trained)) == 2  # the restored model leads back to the run that made it
    assert aliases_of(trained) == {("tiny", "champion"): "1", ("tiny", "challenger"): "2"}


def test_a_yes_or_no_question_goes_all_the_way(trained: Project) -> None:
    trained.set_params(**{"train.loss": "binary_crossentropy", "dataset.positive_classes": ["Sandal", "Sneaker", 9]})
    assert stages_that_ran(trained.repro().stdout) == ["train", "evaluate", "register"]
    registration = json.loads((trained.path / "reports/registration.json").read_text())
    assert registration["gate"] == "passed"
    assert (registration["name"], "champion") in aliases_of(trained)
    assert registration["name"] == "tiny-is-sandal-or-sneaker-or-ankle-boot"


def say_so_in_train(project: Project) -> None:
    """Let the `train` stage of this checkout print that it is."""
    train = project.path / "pipeline/stages/train.py"
    train.write_text(train.read_text().replace("def run(", 'print("the code of this checkout")\n\n\ndef run('))


def test_an_experiment_is_recorded_and_not_judged_until_it_is_run(trained: Project) -> None:
    say_so_in_train(trained)
    trained.commit("a change that shows")
    output = trained.run("dvc", "exp", "run", "-S", "train.loss=categorical_crossentropy").stdout
    assert stages_that_ran(output) == ["train", "evaluate", "register"]
    assert "the code of this checkout" in output
    assert "its model is not registered and not judged. To have it judged: pipeline run" in output
    assert "categorical_crossentropy" in (trained.path / "params.yaml").read_text()
    assert len(runs_of(trained)) == 2
    (name,) = trained.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert run_names_of(trained)[-1].startswith(f"experiment {name}: mlp ")
    assert (versions_of(trained), ledger_of(trained)) == (["1"], [])

    assert stages_that_ran(trained.repro().stdout) == ["register"]  # DVC does not take it for unchanged
    registration = json.loads((trained.path / "reports/registration.json").read_text())
    assert (registration["name"], registration["gate"]) == ("tiny", "passed")
    assert (versions_of(trained), ledger_of(trained)) == (["1", "2"], ["1"])


def test_metrics_plots_and_the_graph_have_something_to_show(trained: Project) -> None:
    metrics = json.loads(trained.run("dvc", "metrics", "show", "--json").stdout)
    first, second = metrics[""]["data"]
    assert (first, second) == ("reports/training/metrics.json", "reports/evaluation/metrics.json")
    assert list(metrics[""]["data"][first]["data"]) == ["validation_accuracy", "validation_loss"]
    values = metrics[""]["data"][second]["data"]
    assert {"accuracy", "accuracy_low", "accuracy_high", "loss", "ece"} <= set(values)
    trained.run("dvc", "plots", "show", "--out", "plots")
    page = (trained.path / "plots/index.html").read_text()
    for title in (
        "Accuracy by epoch",
        "Loss by epoch",
        "Confusion on the test split",
        "Recall by class",
        "Reliability",
    ):
        assert title in page
    assert list((trained.path / "plots/static").rglob("*.png"))
    graph = trained.run("dvc", "dag", "--mermaid").stdout
    assert all(stage in graph for stage in STAGES)


def test_a_stage_does_not_read_what_a_damaged_cache_restored(trained: Project) -> None:
    """DVC trusts a read-only file of its cache, and then the file that it restored from it."""
    digest = lock_of(trained)["split"]["reports/split.json"]
    data = trained.path / "data/dataset"
    listing = json.loads(stored(trained, lock_of(trained)["ingest"]["data/dataset"]).read_text())
    table = next(entry for entry in listing if entry["relpath"] == "test.parquet")
    damaged = stored(trained, table["md5"])
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    damaged.chmod(0o444)
    shutil.rmtree(data)
    trained.run("dvc", "checkout", "ingest")
    refused = trained.repro("--single-item", "--force", "split", check=False)
    assert refused.returncode
    assert "split failed: data/dataset is damaged" in refused.stdout
    assert str(damaged) in refused.stdout
    assert lock_of(trained)["split"]["reports/split.json"] == digest

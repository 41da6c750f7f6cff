"""`train.quantize` on a project whose model is registered without an int8 file."""

import json
import sqlite3

from pipeline.files import file_digest
from tests.conftest import Project, stages_that_ran
from tests.e2e.test_repro import aliases_of, versions_of

INT8 = "models/quantized/model.int8.tflite"


def tags_of_the_version(project: Project) -> dict[str, str]:
    with sqlite3.connect(project.path / "mlflow.db") as store:
        return dict(store.execute("select key, value from model_version_tags"))


def metrics_of_the_runs(project: Project) -> dict[str, float]:
    with sqlite3.connect(project.path / "mlflow.db") as store:
        return dict(store.execute("select key, value from latest_metrics"))


def test_an_int8_file_is_written_measured_registered_and_verified(trained: Project) -> None:
    served = [trained.path / "models" / name for name in ("model.keras", "model.tflite")]
    before = [file_digest(file) for file in served]
    trained.set_params(**{"train.quantize": "int8", "train.quantize_max_drop": 1.0})
    output = trained.repro().stdout
    assert stages_that_ran(output) == ["train", "evaluate", "register"]
    assert "int8: accuracy" in output
    assert [file_digest(file) for file in served] == before

    int8 = trained.path / INT8
    metrics = json.loads((trained.path / "reports/evaluation/metrics.json").read_text())
    low, high = metrics["int8"]["difference_low"], metrics["int8"]["difference_high"]
    assert low <= metrics["int8"]["difference"] <= high
    assert metrics["int8"]["difference"] == round(metrics["int8"]["accuracy"] - metrics["accuracy"], 6)
    assert (metrics["int8"]["bytes"], metrics["int8"]["float_bytes"]) == (int8.stat().st_size, served[1].stat().st_size)
    assert "| int8 file, which decides nothing |" in (trained.path / "reports/evaluation/report.md").read_text()
    gate = json.loads((trained.path / "reports/evaluation/gate.json").read_text())
    (size,) = (check["value"] for check in gate["checks"] if check["name"] == "max_model_bytes")
    assert size == served[1].stat().st_size
    recorded = metrics_of_the_runs(trained)
    assert recorded["test_int8.accuracy"] == metrics["int8"]["accuracy"]
    assert min(recorded["test_int8.ms"], recorded["test_int8.float_ms"]) > 0

    # The same model is not registered again: the file is added to its version.
    assert (versions_of(trained), aliases_of(trained)) == (["1"], {("tiny", "champion"): "1"})
    assert tags_of_the_version(trained)["model.int8.tflite.sha256"] == file_digest(int8)
    trained.commit("quantize")
    assert "all agree" in trained.run("pipeline", "verify").stdout
    fetched = trained.run("mlflow", "artifacts", "download", "-u", "models:/tiny/1/data/model.int8.tflite", "-d", "it")
    assert file_digest(trained.path / "it/data/model.int8.tflite") == file_digest(int8), fetched.stdout

    int8.write_bytes(int8.read_bytes()[:-100])
    refused = trained.run("python", "-m", "pipeline.stages.evaluate", check=False)
    assert refused.returncode == 1
    assert "model.int8.tflite is not the file of its contract" in refused.stdout
    for copy in (trained.path / "mlruns").rglob("data/model.int8.tflite"):  # of the version, and of the new run
        copy.write_bytes(b"altered")
    found = trained.run("pipeline", "verify", check=False)
    assert found.returncode == 1
    assert "the model file model.int8.tflite in the artifact store is not the one that was registered" in found.stdout
    assert "models/quantized" in found.stdout

    trained.set_params(**{"train.quantize": "none"})
    trained.repro("evaluate")
    assert [path.name for path in int8.parent.iterdir()] == ["NOTE.txt"]
    assert [file_digest(file) for file in served] == before
    assert "int8" not in (trained.path / "reports/evaluation/metrics.json").read_text()

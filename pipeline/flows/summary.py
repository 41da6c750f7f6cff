"""What a run came to, in a reader's words: each stage's key figure, from the file that the stage left."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.files import read_json

METRICS = Path("reports/evaluation/metrics.json")
GATE = Path("reports/evaluation/gate.json")
REPORT = Path("reports/evaluation/report.md")


def key_figure(stage: str) -> str:
    """The one thing to know about a stage that ended well; empty for a stage of somebody's own."""
    read = KEY_FIGURES.get(stage)
    return read() if read else ""


def describe_accuracy() -> str:
    """The accuracy on the test images with its 95 % interval."""
    metrics = read_json(METRICS)
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    return f"{metrics['accuracy']:.2%} ({low:.2%} to {high:.2%})"


def failed_checks() -> list[str]:
    """The thresholds of the gate that the model missed, in words; empty when it passed."""
    checks = read_json(GATE)["checks"]
    return [
        f"{check['name']} is {check['threshold']}, found {check['value']}" for check in checks if not check["passed"]
    ]


def _ingest() -> str:
    from pipeline.data.table import count_rows

    train, test = (count_rows(Path(f"data/dataset/{name}.parquet")) for name in ("train", "test"))
    return f"{train + test:,} images"


def _validate() -> str:
    expectations = read_json(Path("reports/validation.json"))["expectations"]
    return f"{sum(found['passed'] for found in expectations)} of {len(expectations)} expectations hold"


def _split() -> str:
    counts: dict[str, Any] = read_json(Path("reports/split.json"))["splits"]
    return " / ".join(f"{split['images']:,} {name}" for name, split in counts.items())


def _train() -> str:
    with Path("reports/training/history.csv").open(newline="", encoding="utf-8") as file:
        epochs = {int(row["epoch"]): float(row["validation_accuracy"]) for row in csv.DictReader(file)}
    best = read_json(Path("reports/training/settings.json"))["best_epoch"]
    return f"validation accuracy {epochs[best]:.2%} in epoch {best}"


def _evaluate() -> str:
    return f"accuracy {describe_accuracy()}"


def _register() -> str:
    registration = read_json(Path("reports/registration.json"))
    return f"{registration['name']}: {registration['gate']}"


KEY_FIGURES: dict[str, Callable[[], str]] = {
    "ingest": _ingest,
    "validate": _validate,
    "split": _split,
    "train": _train,
    "evaluate": _evaluate,
    "register": _register,
}

"""The report of a training: `metrics.json`, `history.csv`, `settings.json`, `curves.png`. No times, no ids."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.files import atomic_directory, write_json

COLUMNS = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate")


def write_training(directory: Path, history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write the report of a training, replacing `directory`.

    Args:
        history: one record for each epoch, with at least `COLUMNS`; epochs are counted from 1.
        settings: everything that determines the result, and `best_epoch`, whose weights are kept.
    """
    with atomic_directory(directory) as partial:
        lines = [",".join(COLUMNS), *(_line(record) for record in history)]
        (partial / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(partial / "settings.json", settings)
        write_json(partial / "metrics.json", _metrics(history, settings["best_epoch"]))
        _draw(history, settings, partial / "curves.png")


def _metrics(history: Sequence[Mapping[str, Any]], best_epoch: int) -> dict[str, float | None]:
    """Return the metrics of the best epoch on the validation split, by which experiments are compared."""
    best = next(record for record in history if record["epoch"] == best_epoch)
    names = ["validation_accuracy", "validation_loss"]
    if best.get("validation_balanced_accuracy") is not None:
        names.append("validation_balanced_accuracy")
    figures = {name: float(f"{best[name]:.6g}") for name in names}
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _line(record: Mapping[str, Any]) -> str:
    return ",".join(f"{record[name]:.6g}" if name != "epoch" else str(record[name]) for name in COLUMNS)


def _draw(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], path: Path) -> None:
    """Draw loss and accuracy by epoch on training and validation images, with the best epoch marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [record["epoch"] for record in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [record[name] for record in history], marker="o", markersize=3, label="training")
        axes.plot(
            epochs, [record[f"validation_{name}"] for record in history], marker="o", markersize=3, label="validation"
        )
        axes.axvline(settings["best_epoch"], color="0.6", linestyle=":", label="best epoch")
        axes.set(xlabel="epoch", title=name.capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})

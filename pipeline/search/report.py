"""The artifacts of a sweep in MLflow: Optuna's plots, and the trials as a table and as JSON."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.markdown import escape, table
from pipeline.files import write_json
from pipeline.search.progress import describe_params, describe_result
from pipeline.search.summary import Summary
from pipeline.tracking.nested_runs import log_directory
from pipeline.tracking.training_runs import Record

if TYPE_CHECKING:
    from optuna import Study

PLOTS = {
    "history": "plot_optimization_history",
    "importance": "plot_param_importances",
    "slice": "plot_slice",
    "parallel_coordinates": "plot_parallel_coordinate",
}


def log_report(record: Record, study: "Study", summary: Summary) -> None:
    """Log the plots, the tables and the result to the run of a sweep.

    Raises:
        TrackingError: the store cannot be used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_json(directory / "sweep.json", summary.describe())
        (directory / "sweep.md").write_text(_page(summary), encoding="utf-8")
        draw_plots(study, summary, directory)
        log_directory(record, directory)
    if summary.best and summary.best.value is not None:
        best = summary.best
        figures = {"best_value": best.value, "best_validation_accuracy": best.validation_accuracy}
        known = {name: round(value, 6) for name, value in figures.items() if value is not None}
        record.log_metrics(known | {"cpu_seconds": summary.cpu_seconds})
        record.set_tags(
            {"sweep.best": str(summary.best.number)}
            | {f"best.{key}": str(value) for key, value in summary.best.params.items()}
        )


def import_plots() -> None:
    """Import what the plots need, which takes a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    import optuna.importance
    import optuna.visualization.matplotlib  # noqa: F401


def draw_plots(study: "Study", summary: Summary, directory: Path) -> None:
    """Draw Optuna's plots of the complete trials as PNG files. They need two whose values differ."""
    values = {row.value for row in summary.rows if row.value is not None}
    if len(values) < 2:
        return
    import_plots()
    import numpy as np
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    for name, function in PLOTS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each is experimental
            axes = getattr(plots, function)(study)
            figure = np.ravel(axes)[0].figure
            figure.savefig(directory / f"{name}.png", dpi=100, bbox_inches="tight")
            pyplot.close(figure)


def _page(summary: Summary) -> str:
    columns = ["trial", "params", "validation accuracy", "state", "SHA-256 of model.keras"]
    rows = [
        [
            str(row.number),
            escape(describe_params(row)),
            "" if row.validation_accuracy is None else f"{row.validation_accuracy:.4f}",
            row.state,
            row.model_sha256 or "",
        ]
        for row in summary.rows
    ]
    lines = map(escape, describe_result(summary))
    return "\n\n".join([f"# Sweep {summary.name}", *lines, table(columns, rows)]) + "\n"

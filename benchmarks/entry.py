"""Accuracy per minute of any Keras model on Fashion-MNIST: measure an entry for the table in `training.md`.

    python benchmarks/entry.py network.py             # by the validation images, as often as you like
    python benchmarks/entry.py network.py --judge     # by the test images: once for each entry
    python benchmarks/entry.py network.keras --judge  # a saved model, without a time

`network.py` has a function `build()`, which returns a compiled Keras model for images uint8 [n, 28, 28] with ten
outputs. It may have `train(model, images, labels, validation)`; otherwise `model.fit` with its defaults trains for five
epochs. The rules are in `training.md`. The splits and the raw data are those of `pipeline run --until split`.
`python benchmarks/training.py` adds the judged entries to its table.
"""

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.data.table import read_images
from pipeline.files import file_digest, read_cached_json, write_json

REPOSITORY = Path(__file__).resolve().parent.parent
ENTRIES = REPOSITORY / ".pipeline" / "bench" / "entries"
EPOCHS = 5  # without a function `train`
COLUMNS = ("what", "seconds", "CPU seconds", "against `model.fit`", "{} accuracy", "deviation", "each")


def measure(file: Path, seed: int, splits: Path, judged: str) -> dict[str, float | None]:
    """Train a model, or load one, which takes no time, and judge it. Returns seconds, CPU seconds and accuracy.

    Args:
        splits: directory with train.parquet, validation.parquet and test.parquet.
        judged: the split to judge by.
    """
    import keras

    seconds = cpu_seconds = None
    if file.suffix == ".keras":
        model = keras.models.load_model(file)
    else:
        keras.utils.set_random_seed(seed)
        functions = runpy.run_path(str(file))
        model, train = functions["build"](), functions.get("train", _fit)
        images, labels = read_images(splits / "train.parquet")
        validation = read_images(splits / "validation.parquet")
        started, cpu_started = time.perf_counter(), time.process_time()
        train(model, images, labels, validation)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    images, labels = read_images(splits / f"{judged}.parquet")
    answers = model.predict(images, batch_size=256, verbose=0)
    accuracy = float((answers.argmax(axis=1) == labels).mean())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "accuracy": accuracy}


def _fit(model: Any, images: Any, labels: Any, validation: Any) -> None:
    model.fit(images, labels, epochs=EPOCHS, validation_data=validation, verbose=0)


def describe(name: str, results: list[dict[str, Any]], fit_cpu_seconds: float) -> tuple[str, ...]:
    """Return the row of an entry: means over its trainings.

    Args:
        results: of `measure`, as plain values.
        fit_cpu_seconds: of `model.fit` with Keras's defaults on the same machine.
    """
    accuracy = [result["accuracy"] for result in results]
    times = [
        statistics.mean(result[key] for result in results) if results[0][key] is not None else None
        for key in ("seconds", "cpu_seconds")
    ]
    shown = ["" if value is None else f"{value:.1f}" for value in times]
    shown.append("" if times[1] is None else f"{times[1] / fit_cpu_seconds:.2f} x")
    deviation = f"{statistics.stdev(accuracy):.4f}" if len(accuracy) > 1 else ""
    each = ", ".join(f"{value:.4f}" for value in accuracy)
    return name, *shown, f"{statistics.mean(accuracy):.4f}", deviation, each


def main() -> None:
    """Measure an entry, each training in a process of its own, and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--judge", action="store_true", help="by the test images; the result is kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=Path, default=REPOSITORY / "data" / "splits")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)  # of one training, in its process
    arguments = parser.parse_args()
    judged = "test" if arguments.judge else "validation"
    if arguments.seed is not None:
        print(json.dumps(measure(arguments.file, arguments.seed, arguments.splits, judged)))
        return
    kept = ENTRIES / f"{arguments.file.stem}-{file_digest(arguments.file)[:12]}.json"
    found = read_cached_json(kept) if arguments.judge else None
    if found is None:
        seeds = range(1, 2 if arguments.file.suffix == ".keras" else arguments.seeds + 1)
        results = [_run(__file__, *sys.argv[1:], "--seed", str(seed)) for seed in seeds]
        with tempfile.TemporaryDirectory() as scratch:
            script, data = (str(REPOSITORY / name) for name in ("benchmarks/bare_script.py", "data/raw"))
            bare = _run(script, data, f"{scratch}/bare.keras")
        found = {"name": arguments.file.stem, "results": results, "fit_cpu_seconds": bare["fit_cpu_seconds"]}
        if arguments.judge:
            write_json(kept, found)
    columns = [column.format(judged) for column in COLUMNS]
    for line in (columns, ["---"] * len(columns), describe(**found)):
        print(f"| {' | '.join(line)} |")


def _run(*command: str) -> dict[str, Any]:
    """Run a script, and read the JSON in its last line."""
    output = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


if __name__ == "__main__":
    main()

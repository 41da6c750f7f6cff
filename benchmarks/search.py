"""Measure sweeps on Fashion-MNIST, and write `search.md` here.

    python benchmarks/search.py

Each sweep has the same 16 trials of the `mlp`, one thread for each worker, in a temporary clone of the last commit. One
worker and two run in turn, so that a busy machine slows both: read the ratio.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from end_to_end import (
    REPOSITORY,
    SPREAD_COLUMNS,
    Claim,
    Clone,
    Usage,
    describe_machine,
    markdown_table,
    progress,
    run,
    spread,
    temporary_directory,
)

TRIALS = 16


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    one: list[Usage] = []
    two: list[Usage] = []
    overheads: list[float] = []
    reused: list[float] = []
    with temporary_directory() as directory:
        clone = Clone(directory, "fashion-mnist")
        edit_params(clone.path / "params.yaml")
        for stage in ("ingest", "validate", "split"):
            clone.run("python", "-m", f"pipeline.stages.{stage}")
        clone.run("python", "-m", "pipeline.tracking.store")
        for repeat in range(repeats):
            shutil.rmtree(clone.path / ".pipeline/trainings", ignore_errors=True)
            two.append(sweep(clone, f"two-{repeat}", 2))
            shutil.rmtree(clone.path / ".pipeline/trainings")
            one.append(sweep(clone, f"one-{repeat}", 1))
            overheads += measure_overheads(clone, f"one-{repeat}")
            sweep(clone, f"again-{repeat}", 1)
            again = read_trials(clone, f"again-{repeat}")
            assert all(trial["reused"] for trial in again)
            reused += [trial["seconds"] for trial in again]
    ratio = statistics.median(b.wall / a.wall for a, b in zip(one, two, strict=True))
    overhead = statistics.median(overheads)
    claims = [
        Claim(f"{TRIALS} trials on two workers, against one", f"{ratio:.2f} x", "at most 0.6 x", ratio <= 0.6),
        Claim("a trial beyond its epochs: median", f"{overhead:.2f} s", "at most 1.5 s", overhead <= 1.5),
        Claim("a trial that is reused: longest", f"{max(reused):.2f} s", "less than 1 s", max(reused) < 1),
    ]
    rows = [
        spread("one worker, wall", [usage.wall for usage in one]),
        spread("two workers, wall", [usage.wall for usage in two]),
        spread("one worker, CPU", [usage.cpu for usage in one]),
        spread("two workers, CPU", [usage.cpu for usage in two]),
        spread("a trial beyond its epochs", overheads),
        spread("a trial that is reused", reused),
    ]
    write(claims, rows, max(usage.peak for usage in one))


def edit_params(file: Path) -> None:
    """Set the sampler and the pruner: the trials are always the same, and train all of their epochs."""
    params = yaml.safe_load(file.read_text())
    params["sweep"] |= {"sampler": "random", "pruner": "none"}
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def sweep(clone: Clone, name: str, workers: int) -> Usage:
    """Run a sweep with one thread for each worker, and measure it."""
    command = ("pipeline", "sweep", "--name", name, "--trials", str(TRIALS), "--workers", str(workers))
    usage = clone.measure(*command, TF_NUM_INTRAOP_THREADS="1")
    progress(f"{name}: {usage.wall:.1f} s")
    return usage


def read_trials(clone: Clone, name: str) -> list[dict[str, Any]]:
    """Read the trials of a sweep."""
    trials: list[dict[str, Any]] = json.loads(clone.run("pipeline", "sweep", "show", name, "--json").stdout)["trials"]
    return trials


def measure_overheads(clone: Clone, name: str) -> list[float]:
    """Return the seconds of each trial without those of the training steps of its epochs."""
    files = (clone.path / ".pipeline/trainings").glob("*.json")
    results = {result["model_sha256"]: result["history"] for result in map(json.loads, map(Path.read_text, files))}
    images = pq.read_metadata(clone.path / "data/splits/train.parquet").num_rows
    return [
        trial["seconds"] - sum(images / epoch["images_per_second"] for epoch in results[trial["model_sha256"]])
        for trial in read_trials(clone, name)
    ]


def write(claims: list[Claim], rows: list[tuple[str, ...]], memory: float) -> None:
    """Write the page."""
    commit = run("git", "log", "-1", "--format=%h of %cs", cwd=REPOSITORY).stdout.strip()
    sections = [
        "# Sweeps, measured",
        f"Written by `python benchmarks/search.py` for commit {commit}, in a temporary clone.",
        describe_machine(),
        markdown_table(
            ("what", "measured", "reach", "holds"),
            [(c.what, c.measured, c.promised, "yes" if c.holds else "**no**") for c in claims],
        ),
        f"A sweep is {TRIALS} trials of the preset `mlp` with the space of `params.yaml`, one thread for each worker, "
        "and includes the start of its processes. A trial beyond its epochs reads the images, builds the network, "
        "validates after each epoch, writes checkpoints, saves the model for its digest, and records itself in "
        f"Optuna's study and in MLflow. The largest process used {memory:.0f} MB.",
        markdown_table(SPREAD_COLUMNS, rows),
    ]
    (REPOSITORY / "benchmarks/search.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

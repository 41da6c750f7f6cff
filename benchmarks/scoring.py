"""Batch scoring of a million pictures by the champion, in turn with LiteRT alone in a loop. Writes `scoring.md`.

Run in a workspace with Fashion-MNIST and a champion: `python benchmarks/scoring.py`, about four minutes and 2 GB of
temporary disk. Linux only: it reads the memory of processes from the kernel.

Four ways, each in a process of its own, with as many threads:
- LiteRT alone: one interpreter in a loop over images in memory. It reads and writes nothing.
- a script: the same loop over the Parquet file, which writes the labels with NumPy. It cannot be resumed.
- `pipeline score`: processes with one thread each, over the Parquet file, and over an .npy file.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

from pipeline.data import table
from pipeline.models import interpreter
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, read_contract

REPORT = Path(__file__).with_suffix(".md")
TRAINING, MODELS = Path("data/dataset/train.parquet"), Path("models")
REACH = 0.8  # rate of `pipeline score`, relative to LiteRT alone
GROWTH = 1.25  # memory at all pictures, relative to a quarter of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--way", choices=("alone", "script"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps({"seconds": run_loop(arguments.way, arguments.file, arguments.threads)}))
        return 0
    is_busy = os.getloadavg()[1] > len(os.sched_getaffinity(0)) / 2  # before this benchmark adds its own load
    with tempfile.TemporaryDirectory() as scratch:
        quarter, file = Path(scratch, "quarter.parquet"), Path(scratch, "all.parquet")
        for path, count in ((quarter, arguments.pictures // 4), (file, arguments.pictures)):
            write_pictures(path, count)
            write_array(path.with_suffix(".npy"), count)
        ways = "alone", "script", "parquet", "npy"
        rates: dict[str, list[float]] = {way: [] for way in ways}
        costs: dict[str, list[float]] = {way: [] for way in ways}  # CPU-µs a picture, without the start of the process
        walls: list[float] = []
        for _ in range(arguments.rounds):
            for way in ways:
                command = [sys.executable, __file__, "--way", way, "--threads", str(arguments.threads), "--file"]
                used = []
                for path in (quarter, file):
                    before, start = os.times(), time.perf_counter()
                    ours = [*command, str(path)]
                    if way in ("parquet", "npy"):
                        ours = score(path.with_suffix(f".{way}"), arguments.threads)
                    seconds = json.loads(run(ours))["seconds"]
                    wall, after = time.perf_counter() - start, os.times()
                    used.append(sum(after[2:4]) - sum(before[2:4]))
                rates[way].append(arguments.pictures / seconds)
                costs[way].append((used[1] - used[0]) / (0.75 * arguments.pictures) * 1e6)
            walls.append(wall)
            print({way: f"{rates[way][-1]:,.0f}/s, {costs[way][-1]:.2f} CPU-µs" for way in ways}, flush=True)
        memory = [measure_memory(score(path, arguments.threads)) for path in (quarter, file)]
    REPORT.write_text(describe(arguments, rates, costs, walls, memory, is_busy=is_busy), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))
    return int("**no**" in REPORT.read_text(encoding="utf-8"))


def write_pictures(path: Path, count: int) -> None:
    """Write a table of the training images, repeated."""
    images, labels = table.read_images(TRAINING)
    sources = table.strings(["official"] * len(labels))
    with table.writer(path, table.read_dataset(TRAINING)) as rows:
        for first in range(0, count, len(labels)):
            part = slice(min(len(labels), count - first))
            ids = table.strings([f"picture-{row}" for row in range(first, first + len(labels[part]))])
            rows.write(images[part], labels[part], ids, sources[part])


def write_array(path: Path, count: int) -> None:
    """Write the same pictures as an array."""
    images, _ = table.read_images(TRAINING)
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, *images.shape[1:]))
    for first in range(0, count, len(images)):
        stored[first : first + len(images)] = images[: count - first]
    stored.flush()


def score(file: Path, threads: int) -> list[str]:
    """Return the command that scores a file."""
    command = [sys.executable, "-m", "pipeline.cli", "score", str(file), str(file.with_name("scores.parquet"))]
    return [*command, "--workers", str(threads), "--json"]


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def run_loop(way: str, file: Path, threads: int) -> float:
    """Predict all pictures of a file in a loop. Returns seconds."""
    model = interpreter.load(MODELS / LITERT_FILE, read_contract(MODELS / CONTRACT_FILE), threads=threads)
    rows = table.count_rows(file)
    images, _ = table.read_images(TRAINING)
    model.predict(images[:1024])
    start = time.perf_counter()
    if way == "alone":
        for first in range(0, rows, len(images)):
            model.predict(images[: rows - first])
    else:
        parts = [model.predict(part.images).argmax(axis=1) for part in table.stream(file)]
        np.save(file.with_name("labels.npy"), np.concatenate(parts).astype(np.uint16))
    return time.perf_counter() - start


def measure_memory(command: list[str]) -> float:
    """Return the peak memory of a command and its workers in MB. Pages that processes share count once (PSS)."""
    process, peak = psutil.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        used = 0
        for one in (process, *process.children(recursive=True)):
            try:
                used += one.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, used)
        time.sleep(0.02)
    return peak / 1e6


def describe(
    arguments: argparse.Namespace,
    rates: dict[str, list[float]],
    costs: dict[str, list[float]],
    walls: list[float],
    memory: list[float],
    *,
    is_busy: bool,
) -> str:
    commit = run(["git", "rev-parse", "--short", "HEAD"]).strip()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    ways = {
        "alone": "LiteRT alone, images in memory, nothing read or written",
        "script": "a script: the same loop over the Parquet file",
        "parquet": "`pipeline score`, Parquet (compressed by zstd)",
        "npy": "`pipeline score`, .npy (not compressed)",
    }
    compared = [
        ("Parquet, relative to a script that reads it, too", "parquet", "script"),
        ("Parquet, relative to LiteRT alone", "parquet", "alone"),
        (".npy, relative to LiteRT alone", "npy", "alone"),
    ]
    verdicts = []
    for text, ours, theirs in compared:
        by_rate = statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
        by_cost = statistics.median(costs[theirs]) / statistics.median(costs[ours])
        holds = "yes" if (by_cost if is_busy else by_rate) >= REACH else "**no**"
        verdicts.append(f"| {text} | {by_rate:.2f} | {by_cost:.2f} | at least {REACH} | {holds} |")
    rows = [
        f"| {text} | {statistics.median(rates[way]):,.0f} | {min(rates[way]):,.0f} | {max(rates[way]):,.0f} | "
        f"{statistics.median(costs[way]):.2f} |"
        for way, text in ways.items()
    ]
    is_flat = "yes" if memory[1] <= GROWTH * memory[0] else "**no**"
    quarter = f"{arguments.pictures // 4:,}"
    lines = [
        "# Batch scoring, measured",
        "",
        f"Written by `python benchmarks/scoring.py` for commit {commit} of {datetime.now(UTC):%Y-%m-%d}: "
        f"{arguments.pictures:,} pictures of 28 x 28 in Parquet (Fashion-MNIST repeated), preset `mlp`, "
        f"{arguments.threads} threads each, {arguments.rounds} rounds in turn.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, load {load} over 1, 5 and 15 minutes at the end. "
        f"Python {platform.python_version()}, ai-edge-litert {version_of('ai-edge-litert')}, "
        f"pyarrow {version_of('pyarrow')}.",
        "",
        "| what | pictures a second, median | least | most | CPU-µs a picture |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "| rate of `pipeline score` | median of the rounds | by CPU time | reach | holds |",
        "|---|---|---|---|---|",
        *verdicts,
        "",
        f"Peak memory of all processes: {memory[0]:.0f} MB for {quarter} pictures, {memory[1]:.0f} MB for "
        f"{arguments.pictures:,} (at most {GROWTH} times: {is_flat}).",
        "",
        "CPU time is the difference between two sizes of the input: it leaves out the start of the process, and hardly "
        "depends on what else the machine does. The rates do."
        + (" The machine was busy with other work, so CPU time decides what holds." if is_busy else ""),
        "",
        f"The whole command takes {statistics.median(walls):.1f} s (median): also the start of Python and MLflow, the "
        "download of the model, the comparison with the validation images and the record in MLflow.",
        "",
    ]
    return "\n".join(lines)


def version_of(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    raise SystemExit(main())

"""Peak memory and CPU time of the data stages, each a process of its own, at two sizes of the data.

The first is Fashion-MNIST's size, the second by default eight times as much.

Linux only: it reads the kernel's high-water mark. Run: `python benchmarks/memory.py`, about two minutes and 3 GB of
temporary disk. Exits 1 when a stage's memory grows by more than its limit.
"""

import argparse
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from pipeline.data import tiny

REPOSITORY = Path(__file__).resolve().parent.parent
LIMITS = {"ingest": 1.2, "validate": 1.3, "split": 1.2}  # peak at the last scale, relative to the first
TRAIN, TEST = 60_000, 10_000
STAGE = """
import atexit, os, runpy, sys
def report():
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], sum(os.times()[:2]), file=open("used", "w"))
atexit.register(report)
runpy.run_module(f"pipeline.stages.{sys.argv.pop()}", run_name="__main__")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=list(LIMITS))
    arguments = parser.parse_args()
    images, labels = tiny.generate(TRAIN, tiny.SEED)
    peaks: dict[str, list[float]] = {stage: [] for stage in arguments.stages}
    for scale in arguments.scales:
        with tempfile.TemporaryDirectory() as directory:
            workspace = Path(directory)
            prepare(workspace, images, labels, scale)
            for stage in LIMITS:
                if stage in peaks or stage == "ingest":
                    peak, seconds = measure(stage, workspace)
                    each = seconds / scale / (TRAIN + TEST) * 1e6
                    cost = f"{peak:.0f} MB, {seconds:.2f} CPU-s ({each:.1f} µs an image)"
                    print(f"{stage} at {scale} x {TRAIN + TEST:,} images: {cost}", flush=True)
                    peaks.setdefault(stage, []).append(peak)
    failed = False
    for stage in arguments.stages:
        growth = peaks[stage][-1] / peaks[stage][0]
        failed |= growth > LIMITS[stage]
        print(f"{stage}: {growth:.2f} times the memory at {arguments.scales[-1]} x the data (limit {LIMITS[stage]})")
    return int(failed)


def prepare(workspace: Path, images: np.ndarray, labels: np.ndarray, scale: int) -> None:
    """A workspace whose catalogue has a dataset of `scale` times the size, its files in the local directory."""
    for name in ("data/incoming", "data/local"):
        (workspace / name).mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", workspace)
    shutil.copy(REPOSITORY / "data/corrections.csv", workspace / "data")
    files = []
    for name, count, base in zip(tiny.FILES, (TRAIN, TRAIN, TEST, TEST), (images, labels) * 2, strict=True):
        path = workspace / "data/local" / name
        write_copies(path, base[:count], scale, first=1 if count == TRAIN else 1 + scale)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"name": name, "bytes": path.stat().st_size, "sha256": digest})
    (workspace / "data/catalog").mkdir()
    tiny_facts = yaml.safe_load((REPOSITORY / "data/catalog/tiny.yaml").read_text(encoding="utf-8"))
    facts = tiny_facts | {"files": files, "train": TRAIN * scale, "test": TEST * scale, "generated": False}
    text = yaml.safe_dump(facts, allow_unicode=True)
    (workspace / "data/catalog/scaled.yaml").write_text(text, encoding="utf-8")
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["dataset"]["name"] = "scaled"
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def write_copies(path: Path, values: np.ndarray, copies: int, first: int) -> None:
    """An idx file of copies that differ in the first two pixels, so that no image occurs twice."""
    with path.open("wb") as file:
        file.write(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, len(values) * copies, *values.shape[1:]))
        for number in range(first, first + copies):
            changed = values.copy()
            if values.ndim == 3:
                changed[:, 0, :2] = number, 2 * number
            file.write(changed.data)


def measure(stage: str, workspace: Path) -> tuple[float, float]:
    """Peak resident memory, in MB, and CPU time, in seconds, of one stage's process."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run([sys.executable, "-c", STAGE, stage], cwd=workspace, env=environment, capture_output=True)
    if process.returncode:
        raise SystemExit(f"{stage} failed:\n{process.stderr.decode()}")
    peak, seconds = (workspace / "used").read_text().split()
    return int(peak) / 1000, float(seconds)


if __name__ == "__main__":
    raise SystemExit(main())

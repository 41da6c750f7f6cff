"""Importing pictures with Dask workers: seconds by the number of workers, the bytes, and the cost without a cluster.

The pictures of `pipeline data import` are decoded and measured. Each row is a process of its own, in turn, in a
temporary project.
Run: `python benchmarks/scale.py`, about ten minutes on an idle machine. Writes `scale.md`; exits 1 when a figure misses
its mark.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from end_to_end import describe_machine, progress, run, temporary_directory
from PIL import Image

from pipeline.evaluation import markdown

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "benchmarks" / "scale.md"
DISTINCT, SIDE, RESIZED = 5_000, 128, 64
MOST_SHARE = 0.6
IMPORTS = 15
WORK = """
import hashlib, sys
from pathlib import Path
from time import perf_counter
from pipeline.data.imports.decoding import Form, decode, measure
from pipeline.data.sources.recognise import Reading, open_collection
start = perf_counter()
scratch = Path("scratch"); scratch.mkdir()
collection = open_collection(Path(sys.argv[1]), Reading())
pictures = decode(collection, Form((int(sys.argv[2]),) * 2, None, "fit", (255,)), scratch, lambda count: None)
measured = measure(pictures.pixels, lambda count: None)
seconds = perf_counter() - start
digest = hashlib.sha256(pictures.pixels)
for values in (pictures.labels, pictures.file_digests, measured.digests, measured.thumbnails, measured.spread):
    digest.update(values.tobytes())
print(f"{seconds} {digest.hexdigest()}")
"""
# A data stage without a cluster: with and without the room.
IMPORT = """
import resource, sys
from time import perf_counter
from pipeline import partitions, rooms
if sys.argv[1] == "without":
    found = {name: room for name, room in rooms.find_rooms().items() if name != "scale"}
    partitions.find_rooms = lambda: found
else:
    rooms.find_rooms()
import pipeline.data.features
from pipeline.params import load_params
load_params()
start = perf_counter()
list(partitions.map_partitions(abs, range(10), workers=1))
seconds = perf_counter() - start
dask = [name for name in sys.modules if name.split(".")[0] in ("dask", "distributed", "tornado")]
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(dask))
"""


@dataclass(frozen=True)
class Row:
    """One configuration that was measured."""

    workers: int | None  # None: one process, without Dask and without processes
    seconds: float
    digest: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with temporary_directory() as root:
        tables = {count: measure_imports(root, count, arguments.rounds) for count in arguments.pictures}
    added = measure_idle()
    largest = tables[max(tables)]
    share = largest[2].seconds / largest[1].seconds
    same = all(len({row.digest for row in rows.values()}) == 1 for rows in tables.values())
    checks = [
        ("two workers, relative to one", f"{share:.2f}", f"at most {MOST_SHARE}", share <= MOST_SHARE),
        ("bytes with 0, 1 and 2 workers", "equal" if same else "different", "equal", same),
        ("modules of Dask without a cluster", f"{added[2]:.0f}", "0", added[2] == 0),
    ]
    PAGE.write_text(describe(tables, added, checks), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    return 0 if all(holds for *_, holds in checks) else 1


def draw_pictures(folder: Path, count: int) -> None:
    """Write distinct PNG files, and links to them."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        directory = folder / f"class-{number % 10}"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{number:06}.png"
        if number < DISTINCT:
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).resize((SIDE, SIDE)).save(file)
            files.append(file)
        else:
            os.link(files[number % DISTINCT], file)


def measure_imports(root: Path, count: int, rounds: int) -> dict[int, Row]:
    """Return the median of each number of workers. 0: one process for each processor, without Dask."""
    progress(f"writing {count:,} pictures")
    pictures = root / f"pictures-{count}"
    draw_pictures(pictures, count)
    rows: dict[int, list[Row]] = {0: [], 1: [], 2: []}
    for number in range(rounds):
        for workers in rows:
            progress(f"{count:,} pictures, {workers} workers, round {number + 1}")
            rows[workers].append(decode_with(root / f"{count}-{workers}-{number}", pictures, workers))
    return {
        workers: Row(workers, statistics.median(row.seconds for row in measured), measured[0].digest)
        for workers, measured in rows.items()
    }


def decode_with(project: Path, pictures: Path, workers: int) -> Row:
    project.mkdir()
    (project / "dvc.yaml").touch()
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("\n  workers: 0", f"\n  workers: {workers}"), encoding="utf-8")
    (project / "work.py").write_text(WORK, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "work.py", str(pictures), str(RESIZED)]
    shown = subprocess.run(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, digest = shown.split()
    return Row(workers, float(seconds), digest)


def measure_idle() -> tuple[float, float, float]:
    """Return what the room adds to a data stage without a cluster: seconds, MB, and modules of Dask."""
    measured: dict[str, list[Sequence[float]]] = {"with": [], "without": []}
    for _ in range(IMPORTS):
        for kind, values in measured.items():
            command = [sys.executable, "-c", IMPORT, kind]
            shown = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True).stdout
            values.append([float(value) for value in shown.split()])
    medians = {
        kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in measured.items()
    }
    differences = [ours - other for ours, other in zip(medians["with"], medians["without"], strict=True)]
    return differences[0], differences[1], medians["with"][2]


def describe(
    tables: dict[int, dict[int, Row]], added: tuple[float, float, float], checks: Sequence[tuple[str, str, str, bool]]
) -> str:
    commit = run("git", "log", "-1", "--format=%h of %cs", cwd=REPOSITORY).stdout.strip()
    promised = [(what, value, mark, "yes" if holds else "no") for what, value, mark, holds in checks]
    rows = [
        (f"{count:,}", *(f"{tables[count][workers].seconds:.1f} s" for workers in (0, 1, 2)),
         f"{tables[count][2].seconds / tables[count][1].seconds:.2f}")
        for count in tables
    ]  # fmt: skip
    columns = ("pictures", "without Dask, all processors", "one worker", "two workers", "two, relative to one")
    return f"""# Importing pictures with workers, measured

Written by `python benchmarks/scale.py` for commit {commit}.

{describe_machine()}

{markdown.table(("what", "measured", "promised", "holds"), promised)}

Pictures of {SIDE} x {SIDE} pixels in PNG, decoded, resized to {RESIZED} x {RESIZED} and measured. Medians, with the
start of the workers.

{markdown.table(columns, rows, 4)}

Without a cluster, the room adds {added[0] * 1000:.1f} ms and {added[1]:.1f} MB to a data stage, to read `scale.workers`
in params.yaml.
"""


if __name__ == "__main__":
    sys.exit(main())

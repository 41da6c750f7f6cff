"""Measure what the README claims of the pipeline as a whole, side by side in one run, and write `end_to_end.md` here.

Everything happens in temporary clones of the last commit, with stores of their own: nothing of the checkout or of the
user's is touched, except that the download cache is filled where it was empty. What is compared runs in turn, so that a
busy machine slows both sides: read the ratios. Linux only, as `memory.py` is.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SHORT_REPEATS = 7  # of what takes a second or a few
SERVER_SECONDS = 180
SPREAD_COLUMNS = ("what", "median, s", "least, s", "most, s")
VERSIONS = 500
CREATE_VERSIONS = """
import sys
from mlflow import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
client.create_registered_model("many")
for number in range(1, int(sys.argv[1]) + 1):
    tags = {"decision": "challenger", "test.accuracy": "0.9", "mlflow.source.git.commit": "0" * 40}
    client.create_model_version("many", f"models/{number}", tags=tags)
"""
PACKAGES = ("tensorflow", "keras", "mlflow", "dvc", "prefect", "great-expectations", "numpy")


@dataclass(frozen=True)
class Claim:
    """One row of the first table: a measured figure and what was promised of it."""

    what: str
    measured: str
    promised: str
    holds: bool


@dataclass
class Report:
    """What is measured, and what has been found so far."""

    dataset: str
    repeats: int  # of whole runs, each with a seed of its own
    finished: "Clone"  # a clone in which everything has run
    claims: list[Claim] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def at_most(self, what: str, measured: float, promised: float, unit: str) -> None:
        self.claims.append(Claim(what, f"{measured:.2f}{unit}", f"at most {promised:g}{unit}", measured <= promised))

    def at_least(self, what: str, measured: float, promised: float) -> None:
        self.claims.append(Claim(what, f"{measured:.4f}", f"at least {promised:.4f}", measured >= promised))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        self.details.append("\n\n".join(filter(None, [f"## {title}", note, markdown_table(columns, rows)])))

    def write(self, path: Path) -> None:
        claims = [(c.what, c.measured, c.promised, "yes" if c.holds else "**no**") for c in self.claims]
        commit = run("git", "log", "-1", "--format=%h of %cs", cwd=REPOSITORY).stdout.strip()
        intro = (
            f"Written by `python benchmarks/end_to_end.py` for commit {commit}, on `{self.dataset}`. What is compared "
            "ran in turn, in temporary clones."
        )
        sections = ["# The pipeline, measured end to end", intro, describe_machine()]
        sections += [markdown_table(("what", "measured", "promised", "holds"), claims), *self.details]
        path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


class Clone:
    """A clone of the last commit, in which the commands run as on a new machine whose download cache is filled."""

    def __init__(self, directory: Path, dataset: str, seed: int = 1) -> None:
        self.path = directory / "clone"
        run("git", "clone", "--quiet", str(REPOSITORY), str(self.path), cwd=directory)
        run("git", "remote", "remove", "origin", cwd=self.path)  # or a retraining pushes its branches here
        ours = ("MLFLOW_", "PREFECT_", "DVC_", "PIPELINE_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.path),  # the clone's code, where the environment has the checkout's installed
            "PREFECT_HOME": str(directory / "prefect"),
            "DVC_SITE_CACHE_DIR": str(directory / "dvc"),
            "DO_NOT_TRACK": "true",
        }
        file = self.path / "params.yaml"
        params = yaml.safe_load(file.read_text())
        params["dataset"]["name"], params["train"]["seed"] = dataset, seed
        file.write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(*command, cwd=self.path, env=self.environment | environment)

    def time(self, *command: str, **environment: str) -> float:
        """Seconds that a command takes."""
        started = time.perf_counter()
        self.run(*command, **environment)
        return time.perf_counter() - started


def measure_runs(report: Report) -> None:
    """The first and a later run against the bare script: seconds, and test accuracy over as many seeds."""
    rows = []
    for seed in range(1, report.repeats + 1):
        with temporary_directory() as directory:
            clone = Clone(directory, report.dataset, seed)
            started = time.perf_counter()
            bare_accuracy = run_bare_script(clone, report.finished.path / "data/raw", seed)
            bare = time.perf_counter() - started
            first, later = clone.time("pipeline", "run"), clone.time("pipeline", "run", "--force")
            accuracy = json.loads((clone.path / "reports/evaluation/metrics.json").read_text())["accuracy"]
        rows.append((bare, first, later, bare_accuracy, accuracy))
        progress(f"seed {seed}: bare script {bare:.1f} s, first run {first:.1f} s, later run {later:.1f} s")
    columns = list(zip(*rows, strict=True))
    bare, first, later = map(statistics.median, columns[:3])
    bare_accuracy, accuracy = map(statistics.mean, columns[3:])
    report.at_most("`pipeline run`, the first, against the bare script", first / bare, 2.0, " x")
    report.at_most("`pipeline run --force`, later, against the bare script", later / bare, 1.5, " x")
    report.at_least("test accuracy of the default preset, against the bare script's", accuracy, bare_accuracy)
    report.at_least("test accuracy of the default preset", accuracy, 0.87)
    lines = [*rows, (bare, first, later, bare_accuracy, accuracy)]
    report.table(
        "A whole run",
        ("seed", "bare script, s", "first run, s", "later run, s", "bare script, accuracy", "default preset, accuracy"),
        [
            (name, *(f"{seconds:.1f}" for seconds in line[:3]), *(f"{share:.4f}" for share in line[3:]))
            for name, line in zip([*range(1, report.repeats + 1), "**all**"], lines, strict=True)
        ],
        "`benchmarks/bare_script.py` loads the same images, fits the same network with Keras's defaults, evaluates and "
        "saves. A first run starts from a fresh clone: no MLflow store, Prefect database or DVC cache, but a filled "
        "download cache. A later run repeats every stage. The last row: medians of the times, means of the accuracies.",
    )


def measure_no_change(report: Report) -> None:
    """What it costs to find that there is nothing to do."""
    clone = report.finished
    with prefect_server(clone) as url:
        commands: dict[str, Callable[[], float]] = {
            "`dvc status`": lambda: clone.time("dvc", "status"),
            "`dvc repro`": lambda: clone.time("dvc", "repro"),
            "`pipeline run`, Prefect server running": lambda: clone.time("pipeline", "run", PREFECT_API_URL=url),
        }
        for measure in commands.values():
            measure()  # the first time each writes what later times find
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(SHORT_REPEATS):
            for name, measure in commands.items():
                seconds[name].append(measure())
    status, repro, flow = (statistics.median(times) for times in seconds.values())
    report.at_most("`dvc repro` with nothing changed, against `dvc status`", repro / status, 1.5, " x")
    report.at_most("`pipeline run` with nothing changed, against `dvc repro`", flow / repro, 8.0, " x")
    report.table("Nothing changed", SPREAD_COLUMNS, [spread(name, times) for name, times in seconds.items()])


def measure_reproduction(report: Report) -> None:
    """Making the champion again from its record, against running the same stages in the clone that trained it."""
    clone = report.finished
    original = clone.time("dvc", "repro", "--force", "evaluate")
    started = time.perf_counter()
    verdict = json.loads(clone.run("pipeline", "reproduce", "champion", "--json").stdout)
    again = time.perf_counter() - started
    what = "`pipeline reproduce champion`, against `dvc repro --force evaluate`"
    report.at_most(f"{what}: {verdict['outcome']}", again / original, 1.5, " x")
    rows = [("`dvc repro --force evaluate`", f"{original:.1f}"), ("`pipeline reproduce champion`", f"{again:.1f}")]
    report.table("Exact reproduction", ("what", "s"), rows, f"The verdict: {verdict['reason']}")


def measure_registry(report: Report) -> None:
    """Listing many versions, against the import of MLflow that it cannot do without."""
    clone = report.finished
    clone.run("python", "-c", CREATE_VERSIONS, str(VERSIONS))
    commands = {
        "`import mlflow`": ("python", "-c", "import mlflow"),
        f"`pipeline versions`, {VERSIONS} versions": ("pipeline", "versions", "--model", "many"),
    }
    seconds = {name: [clone.time(*command) for _ in range(SHORT_REPEATS)] for name, command in commands.items()}
    imports, listing = (statistics.median(times) for times in seconds.values())
    report.at_most(
        f"`pipeline versions` with {VERSIONS} versions, against `import mlflow`", listing / imports, 3.0, " x"
    )
    report.table("The registry", SPREAD_COLUMNS, [spread(name, times) for name, times in seconds.items()])


def measure_imports(report: Report) -> None:
    """Seconds that a whole `ingest` and `split` spend on importing modules, whenever they do so."""
    rows = []
    for stage in ("ingest", "split"):
        command = ("python", "-X", "importtime", "-m", f"pipeline.stages.{stage}")
        traces = [report.finished.run(*command).stderr for _ in range(SHORT_REPEATS)]
        own = [map(int, re.findall(r"^import time:\s+(\d+) \|", trace, re.MULTILINE)) for trace in traces]
        seconds = [sum(microseconds) / 1e6 for microseconds in own]
        report.at_most(f"imports of the stage `{stage}`", statistics.median(seconds), 0.5, " s")
        rows.append(spread(stage, seconds))
    note = "From `python -X importtime` over the whole stage, which itself makes imports a little slower."
    report.table("Imports", SPREAD_COLUMNS, rows, note)


def measure_memory(report: Report) -> None:
    """Peak memory of the data stages for one and for eight times as many images: what `memory.py` finds."""
    clone = report.finished
    # Exit code 1 says that a limit is exceeded, as the table then does.
    output = run("python", "benchmarks/memory.py", cwd=clone.path, env=clone.environment, accepted=(0, 1)).stdout
    growths = re.findall(r"^(\w+): ([\d.]+) times .* (\d+) x .*limit ([\d.]+)", output, re.MULTILINE)
    for stage, growth, scale, limit in growths:
        report.at_most(f"peak memory of `{stage}`, {scale} x the images against 1 x", float(growth), float(limit), " x")
    peaks = re.findall(r"^(\w+) at (.+) images: (\d+) MB", output, re.MULTILINE)
    report.table("Memory", ("stage", "images", "peak, MB"), peaks)


@contextlib.contextmanager
def prefect_server(clone: Clone) -> Iterator[str]:
    """Run Prefect's server on a free port; yields the address of its API."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=clone.path, env=clone.environment, start_new_session=True, **quiet)
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the Prefect server did not start")
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def run(
    *command: str, cwd: Path, env: dict[str, str] | None = None, accepted: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if result.returncode not in accepted:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result


def run_bare_script(clone: Clone, images: Path, seed: int) -> float:
    """Run it on the idx files of a directory; returns its test accuracy."""
    command = ("python", "benchmarks/bare_script.py", str(images), "bare.keras", "--seed", str(seed))
    return float(json.loads(clone.run(*command).stdout.splitlines()[-1])["test_accuracy"])


def describe_machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    memory = psutil.virtual_memory().total / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()}, load {os.getloadavg()[2]:.1f} over the last 15 minutes. "
        f"Python {platform.python_version()}, {packages}."
    )


def spread(name: str, seconds: Sequence[float]) -> tuple[str, ...]:
    return name, *(f"{figure(seconds):.2f}" for figure in (statistics.median, min, max))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (columns, ["---"] * len(columns), *rows))


def progress(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default="fashion-mnist", help="`tiny` for a quick trial, whose figures mean nothing"
    )
    parser.add_argument("--repeats", type=int, default=3, help="whole runs, and seeds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()

    with temporary_directory() as directory:
        progress("a first run, which also fills the download cache and the operating system's")
        report = Report(arguments.dataset, arguments.repeats, Clone(directory, arguments.dataset))
        report.finished.run("pipeline", "run")
        for part in arguments.parts:
            progress(f"measuring {part}")
            PARTS[part](report)
    report.write(arguments.output)
    for claim in report.claims:
        progress(f"{'holds ' if claim.holds else 'MISSED'} {claim.what}: {claim.measured}, {claim.promised}")
    progress(f"written to {arguments.output}")


PARTS = {
    "runs": measure_runs,
    "no-change": measure_no_change,
    "reproduction": measure_reproduction,
    "registry": measure_registry,
    "imports": measure_imports,
    "memory": measure_memory,
}

if __name__ == "__main__":
    main()

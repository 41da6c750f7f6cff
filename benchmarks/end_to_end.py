"""Measure the pipeline as a whole against a bare script, side by side in one run, and write `end_to_end.md` here.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SHORT_REPEATS = 7  # of what takes a second or a few
SERVER_SECONDS = 180
BARE, FIRST, LATER = "bare script", "`pipeline run`, the first", "`pipeline run --force`, later"
KINDS = ("wall", "cpu")  # of seconds
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
class Usage:
    """The resources that a command and all processes it waited for have used."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: float  # MB of the largest process
    output: str = ""  # the standard output

    def __str__(self) -> str:
        return f"{self.wall:.1f} s wall, {self.cpu:.1f} s CPU, {self.peak:.0f} MB"


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

    def ratios(self, what: str, ratios: Sequence[float], promised: float) -> None:
        """Add the median of the rounds' ratios, with their quartiles."""
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        measured = f"{median:.2f} x ({low:.2f} to {high:.2f})"
        self.claims.append(Claim(what, measured, f"at most {promised:g} x", round(median, 2) <= promised))

    def compare(self, what: str, rounds: Sequence[tuple[Usage, Usage]], promised: float) -> None:
        """Add the ratios of wall time and of CPU time of two commands that ran in turn."""
        for kind, name in zip(KINDS, ("wall time", "CPU time"), strict=True):
            ratios = [getattr(one, kind) / getattr(other, kind) for one, other in rounds]
            self.ratios(f"{what}: {name}", ratios, promised)

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
        return self.measure(*command, **environment).wall

    def measure(self, *command: str, **environment: str) -> Usage:
        """Run a command and measure what it uses."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=self.path, env=self.environment | environment, stdout=out, stderr=err
            )
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{out.read()}{err.read()}")
            return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, out.read())


def measure_runs(report: Report) -> None:
    """A first and a later run against the bare script, each round with a seed of its own."""
    rounds: list[dict[str, Usage]] = []
    accuracies: list[tuple[float, float]] = []
    rows: list[tuple[object, ...]] = []
    for seed in range(1, report.repeats + 1):
        with temporary_directory() as directory:
            clone = Clone(directory, report.dataset, seed)
            command = ("python", "benchmarks/bare_script.py", str(report.finished.path / "data/raw"), "bare.keras")
            bare = clone.measure(*command, "--seed", str(seed))
            used = {BARE: bare, FIRST: clone.measure("pipeline", "run")}
            used[LATER] = clone.measure("pipeline", "run", "--force")
            bare_accuracy = json.loads(bare.output.splitlines()[-1])["test_accuracy"]
            accuracy = json.loads((clone.path / "reports/evaluation/metrics.json").read_text())["accuracy"]
        rounds.append(used)
        accuracies.append((bare_accuracy, accuracy))
        rows += [(seed, *row) for row in usage_rows(used)]
        progress(f"seed {seed}: " + ", ".join(f"{name} {usage}" for name, usage in used.items()))
    for name, promised in ((FIRST, 1.3), (LATER, 1.0)):
        report.compare(f"{name}, against the bare script", [(used[name], used[BARE]) for used in rounds], promised)
    memory = [used[LATER].peak / used[BARE].peak for used in rounds]
    report.ratios(f"{LATER}: largest process, peak memory, against the bare script", memory, 1.0)
    bare_mean, mean = (statistics.mean(column) for column in zip(*accuracies, strict=True))
    report.at_least("test accuracy of the default preset, against the bare script's", mean, bare_mean)
    report.at_least("test accuracy of the default preset", mean, 0.87)
    report.table(
        "A whole run",
        ("seed", "what", "wall, s", "CPU, s", "largest process, MB"),
        rows,
        "`benchmarks/bare_script.py` loads the same images, fits the same network with Keras's defaults, evaluates and "
        "saves. A first run starts from a fresh clone: no MLflow store, Prefect database or DVC cache, but a filled "
        "download cache. A later run repeats every stage. Both include the CPU time of a temporary Prefect server.",
    )


def measure_no_change(report: Report) -> None:
    """What it costs to find that there is nothing to do."""
    clone = report.finished
    rounds: list[dict[str, Usage]] = []
    with prefect_server(clone) as url:
        for _ in range(SHORT_REPEATS + 1):
            used = {name: clone.measure("dvc", name) for name in ("status", "repro")}
            rounds.append(used | {"flow": clone.measure("pipeline", "run", PREFECT_API_URL=url)})
    del rounds[0]  # the first round writes what the later ones find
    status = [(used["repro"], used["status"]) for used in rounds]
    report.compare("`dvc repro` with nothing changed, against `dvc status`", status, 1.5)
    flow = [(used["flow"], used["repro"]) for used in rounds]
    report.compare("`pipeline run` with nothing changed, server running, against `dvc repro`", flow, 3.0)
    names = {"status": "`dvc status`", "repro": "`dvc repro`", "flow": "`pipeline run`, Prefect server running"}
    rows = [
        spread(f"{label}, {kind}", [getattr(used[name], kind) for used in rounds])
        for name, label in names.items()
        for kind in KINDS
    ]
    report.table("Nothing changed", SPREAD_COLUMNS, rows)


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
        report.at_most(f"imports of the stage `{stage}`", statistics.median(seconds), 0.4, " s")
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


def usage_rows(used: Mapping[str, "Usage"]) -> list[tuple[str, ...]]:
    return [(name, f"{usage.wall:.1f}", f"{usage.cpu:.1f}", f"{usage.peak:.0f}") for name, usage in used.items()]


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
    parser.add_argument("--repeats", type=int, default=7, help="whole runs, and seeds: a minute or two each")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="`runs no-change imports`: the costs of a run"
    )
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

"""Measure what the project claims of its operation over months, and write `operations.md` here.

    python benchmarks/operations.py              # everything
    python benchmarks/operations.py --parts up

Everything happens in temporary clones of the last commit, with stores of their own. What is compared runs in turn, so
that a busy machine slows both sides: read the ratios.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from end_to_end import (
    REPOSITORY,
    SERVER_SECONDS,
    SPREAD_COLUMNS,
    Claim,
    Clone,
    describe_machine,
    markdown_table,
    progress,
    run,
    spread,
    temporary_directory,
)

from pipeline.data import tiny
from pipeline.server_addresses import answers

REPEATS = 5
KILLS = 50
SETTLE_SECONDS = 20  # after the servers' answer, for the runner to have started, too
MLFLOW, PREFECT = 5611, 4611  # ports that nobody else is likely to have
API = f"http://127.0.0.1:{PREFECT}/api"
ANSWERS = {"mlflow": f"http://127.0.0.1:{MLFLOW}/health", "prefect": f"{API}/health"}


@dataclass
class Report:
    """What has been found so far: rows of the first table, and sections below it."""

    claims: list[Claim] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def at_most(self, what: str, measured: float, promised: float, unit: str) -> None:
        self.claims.append(Claim(what, f"{measured:.2f}{unit}", f"at most {promised:g}{unit}", measured <= promised))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        self.details.append("\n\n".join(filter(None, [f"## {title}", note, markdown_table(columns, rows)])))

    def write(self, path: Path) -> None:
        claims = [(c.what, c.measured, c.promised, "yes" if c.holds else "**no**") for c in self.claims]
        commit = run("git", "log", "-1", "--format=%h of %cs", cwd=REPOSITORY).stdout.strip()
        intro = f"Written by `python benchmarks/operations.py` for commit {commit}, in temporary clones."
        sections = ["# Operation, measured", intro, describe_machine()]
        sections += [markdown_table(("what", "measured", "promised", "holds"), claims), *self.details]
        path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def measure_up(report: Report) -> None:
    """`pipeline up` until all answer, against each server by its own command with the same light settings."""
    with temporary_directory() as directory:
        clone = Clone(directory, "tiny")
        clone.run("python", "-m", "pipeline.tracking.store")
        store = ["--backend-store-uri", f"sqlite:///{clone.path}/mlflow.db", "--no-serve-artifacts"]
        store += ["--default-artifact-root", f"file://{clone.path}/mlruns"]
        commands = {
            "`mlflow server`": (["mlflow", "server", "--workers", "1", "--port", str(MLFLOW), *store], ["mlflow"]),
            "`prefect server start`": (["prefect", "server", "start", "--port", str(PREFECT)], ["prefect"]),
            "`pipeline up`": (
                ["pipeline", "up", "--mlflow-port", str(MLFLOW), "--prefect-port", str(PREFECT)],
                ["mlflow", "prefect"],
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        memory = []
        for repeat in range(-1, REPEATS):
            for name, (command, servers) in commands.items():
                with started(clone, command, servers) as (process, took):
                    if repeat >= 0:  # the first time each makes what later times find
                        seconds[name].append(took)
                        progress(f"{name}: {took:.1f} s")
                    if name == "`pipeline up`":
                        time.sleep(SETTLE_SECONDS)
                        memory.append(proportional_memory(process))
    mlflow, prefect, up = (statistics.median(times) for times in seconds.values())
    what = "`pipeline up` to all answering, against the slower server alone"
    report.at_most(what, up / max(mlflow, prefect), 1.3, " x")
    report.at_most("memory of `pipeline up` and all that it started", max(memory) / 1e9, 1.2, " GB")
    note = "MLflow's server with one worker and no job runner either way. Memory: proportional set size, from `/proc`."
    rows = [spread(name, times) for name, times in seconds.items()]
    report.table("Servers, from the command to the answer", SPREAD_COLUMNS, rows, note)


def measure_retraining(report: Report) -> None:
    """With the stack up: a scheduled retraining that finds nothing new, and a batch until its retraining starts."""
    with temporary_directory() as directory:
        clone = Clone(directory, "tiny")
        clone.run("pipeline", "run")
        clone.run("git", "commit", "--quiet", "--all", "--message", "work on the tiny dataset")
        command = ["pipeline", "up", "--mlflow-port", str(MLFLOW), "--prefect-port", str(PREFECT)]
        idle, arrivals, stages = [], [], 0
        with started(clone, command, ["mlflow", "prefect"]):
            while not ask("deployments/name/retrain/retrain"):
                time.sleep(0.5)
            deployment = ask("deployments/name/retrain/retrain")["id"]
            for repeat in range(-1, REPEATS):
                due = datetime.now(UTC) + timedelta(seconds=1)
                state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
                run_id = ask(f"deployments/{deployment}/create_flow_run", {"state": state})["id"]
                while not (found := ask(f"flow_runs/{run_id}"))["end_time"]:
                    if repeat >= 0:
                        stages += count_stages(clone)
                    time.sleep(0.1)
                if repeat >= 0:  # the first takes the clone's commit in
                    assert found["state_name"] == "NothingNew", found["state"]
                    idle.append((datetime.fromisoformat(found["end_time"]) - due).total_seconds())
                    progress(f"nothing new: {idle[-1]:.1f} s")
            known = {run["id"] for run in runs_of(deployment)}
            for repeat in range(REPEATS):
                images, labels = tiny.generate(50, 1000 + repeat)
                np.savez(clone.path / f"data/incoming/{repeat}.npz", images=images, labels=labels)
                arrived = datetime.now(UTC)
                while not (new := [run for run in runs_of(deployment) if run["id"] not in known and run["start_time"]]):
                    time.sleep(0.5)
                arrivals.append((datetime.fromisoformat(new[0]["start_time"]) - arrived).total_seconds())
                progress(f"batch to retraining: {arrivals[-1]:.1f} s")
                known.add(new[0]["id"])
                while not ask(f"flow_runs/{new[0]['id']}")["end_time"]:
                    time.sleep(1)
    what = "a scheduled retraining that finds nothing new, from the time that was set to its end"
    report.at_most(what, max(idle), 15, " s")
    report.at_most("stage processes that it started", stages, 0, "")
    report.at_most("a new batch until its retraining has started", max(arrivals), 60, " s")
    rows = [spread("nothing new, to the end", idle), spread("a batch, to the start", arrivals)]
    note = "The runner asks for due runs every 5 s; a batch must have been quiet for as long, twice."
    report.table("Retraining by the stack", SPREAD_COLUMNS, rows, note)


def ask(path: str, content: object = None) -> Any:
    """What Prefect's API answers; None where it knows nothing of it."""
    answer = httpx.request("GET" if content is None else "POST", f"{API}/{path}", json=content)
    return answer.json() if answer.is_success else None


def runs_of(deployment: str) -> list[dict[str, Any]]:
    """The flow runs of a deployment."""
    return list(ask("flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "limit": 100}))


def count_stages(clone: Clone) -> int:
    """The processes that are a stage at work anywhere in a clone."""
    found = psutil.process_iter(["cmdline", "cwd"])
    here = (one.info["cmdline"] or [] for one in found if (one.info["cwd"] or "").startswith(str(clone.path)))
    return sum("pipeline.stages." in " ".join(command) for command in here)


@contextlib.contextmanager
def started(clone: Clone, command: list[str], servers: list[str]) -> Iterator[tuple[psutil.Process, float]]:
    """Run servers for the length of a block; yields their process, and how long they took to answer."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = clone.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=clone.path, env=environment, start_new_session=True, **quiet)
    try:
        for server in servers:
            while not answers(ANSWERS[server]):
                if process.poll() is not None or time.perf_counter() > begin + SERVER_SECONDS:
                    raise SystemExit(f"{' '.join(command)} did not start")
                time.sleep(0.1)
        yield psutil.Process(process.pid), time.perf_counter() - begin
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def proportional_memory(process: psutil.Process) -> float:
    """Bytes of a process and all below it, with what they share counted once."""
    return float(sum(one.memory_full_info().pss for one in (process, *process.children(recursive=True))))


def measure_kills(report: Report, count: int = KILLS) -> None:
    """Random kills in a project whose stages do next to nothing, and what they leave. The tests do five."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.e2e import light
    from tests.e2e.kills import RETRAIN, RUN, kill_at_random

    with temporary_directory() as directory:
        project = light.build(directory / "project", directory / "home")
        found = kill_at_random(project, count, seed=count, commands=(RUN, RETRAIN))
    remains = [*found.orphans, *found.locks, *found.checkouts, *found.partials]
    what = "orphan processes, locks, temporary checkouts or half-written files"
    report.at_most(f"{what} after {count} random kills", len(remains), 0, "")
    report.at_most("runs, versions or history entries lost over them", len(found.lost), 0, "")
    report.at_most("runs after them that did not end well", len(found.wrong), 0, "")
    note = (
        f"Every few kills the command was left to end: {found.models} models and {found.moves} moves of an alias. What "
        "was killed, and in which command; `machine` is all processes at once."
    )
    report.table("Random kills", ("command and victim", "kills"), sorted(found.kills.items()), note)
    for line in (*remains, *found.lost, *found.wrong):
        progress(line)


PARTS = {
    "kills": measure_kills,
    "up": measure_up,
    "retraining": measure_retraining,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    report = Report()
    for part in arguments.parts:
        progress(f"measuring {part}")
        PARTS[part](report)
    report.write(arguments.output)
    for claim in report.claims:
        progress(f"{'holds ' if claim.holds else 'MISSED'} {claim.what}: {claim.measured}, {claim.promised}")
    return 0 if all(claim.holds for claim in report.claims) else 1


if __name__ == "__main__":
    sys.exit(main())

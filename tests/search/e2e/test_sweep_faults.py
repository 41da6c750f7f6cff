"""Sweeps whose workers are killed, alone and on two machines: no trial is lost, repeated, or trained differently."""

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Project
from tests.integration.postgresql import running_postgresql
from tests.processes import wait_until, wait_until_idle

pytestmark = pytest.mark.faults  # kills, and a database server

SPACE = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "widths": {"choices": [[64], [128]]}}


def shown(project: Project, name: str, **environment: str) -> dict[str, Any]:
    result = project.run("pipeline", "sweep", "show", name, "--json", check=False, **environment)
    return json.loads(result.stdout) if result.returncode == 0 else {"trials": []}


def epochs(project: Project, number: int) -> int:
    """The epochs that a trial has reported, by the journal, while it runs; reading it by the command takes seconds."""
    journal = project.path / ".pipeline/sweeps/killed/journal.log"
    lines = map(json.loads, journal.read_text().splitlines()) if journal.exists() else []
    return sum(line["op_code"] == 7 and line["trial_id"] == number for line in lines)


def workers(project: Project) -> list[psutil.Process]:
    processes = psutil.process_iter(["cmdline", "cwd"])
    return [
        process
        for process in processes
        if process.info["cwd"] == str(project.path) and "pipeline.search.worker" in (process.info["cmdline"] or ())
    ]


@contextmanager
def started(project: Project, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = project.start("pipeline", "sweep", *command, **environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_killed_trials_continue_and_end_with_the_same_models(template: Project, tmp_path: Path) -> None:
    project = template.copy_to(tmp_path / "project")
    project.set_params(**{"sweep.space": SPACE, "sweep.pruner": "none", "train.epochs": 60})
    command = ("--name", "killed", "--trials", "2")

    with started(project, *command) as sweep:
        wait_until(lambda: epochs(project, 0) >= 5)
        (worker,) = workers(project)
        worker.kill()
        wait_until(lambda: epochs(project, 1) >= 5)
        assert [process.pid for process in workers(project)] != [worker.pid]
        sweep.kill()
    wait_until_idle(project)  # the workers end with the command
    assert [trial["state"] for trial in shown(project, "killed")["trials"]] == ["complete", "waiting"]

    project.run("pipeline", "sweep", *command)
    killed = shown(project, "killed")["trials"]
    assert epochs(project, 0) == epochs(project, 1) == 60  # those before the kill are not trained again

    shutil.rmtree(project.path / ".pipeline/trainings")
    project.run("pipeline", "sweep", "--name", "calm", "--trials", "2")
    calm = shown(project, "calm")["trials"]
    compared = ("number", "params", "state", "value", "model_sha256", "reused")
    assert [[one[name] for name in compared] for one in killed] == [[one[name] for name in compared] for one in calm]
    assert len({one["model_sha256"] for one in killed}) == 2


def test_two_checkouts_share_a_sweep_in_postgresql_and_one_is_killed(template: Project, tmp_path: Path) -> None:
    with running_postgresql() as make_database:
        team = {"MLFLOW_TRACKING_URI": make_database(), "MLFLOW_DEFAULT_ARTIFACT_ROOT": (tmp_path / "runs").as_uri()}
        one, two = (template.copy_to(tmp_path / name) for name in ("one", "two"))
        for project in (one, two):
            project.set_params(**{"sweep.space": SPACE, "sweep.pruner": "none", "train.epochs": 20})

        with started(one, "--name", "team", "--trials", "6", "--confirm", "1", **team) as first:
            wait_until(lambda: first.poll() is not None or shown(one, "team", **team)["trials"])
            assert first.poll() is None, first.communicate()[0]
            with started(two, "--join", "team", **team):
                log = two.path / ".pipeline/sweeps/team/worker-1.log"
                wait_until(lambda: log.exists() and "trial" in log.read_text())
                taken = log.read_text().splitlines()[-1].split()[1].rstrip(":")
            output, _ = first.communicate(timeout=300)
        assert first.returncode == 0, output
        assert "other seeds: mean" in output
        content = shown(one, "team", **team)
        assert {row["number"] for row in content["confirmations"]} == set(content["within_noise"][:5])
        trials = content["trials"]
        assert [(trial["number"], trial["state"]) for trial in trials] == [(n, "complete") for n in range(6)]
        logs = [(project.path / ".pipeline/sweeps/team/worker-1.log").read_text() for project in (one, two)]
        ended = Counter(line.split(":")[0] for log in logs for line in log.splitlines() if "COMPLETE" in line)
        confirmed = len(content["confirmations"])  # each is a trial of its own study, numbered from 0
        assert ended == {f"trial {number}": 1 + (number < confirmed) for number in range(6)}
        assert f"trial {taken}: {{" in logs[1]

        project = template.copy_to(tmp_path / "other")
        refused = project.run("pipeline", "sweep", "--name", "team", check=False, **team)
        assert "was started with other parameters" in refused.stdout

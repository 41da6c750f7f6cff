"""`pipeline train`: two processes train one model; after a kill, of one or of the command, it continues."""

import sys

import psutil
import pytest

from tests.conftest import Project
from tests.integration.test_distribution import free_ports
from tests.processes import wait_until, wait_until_idle

pytestmark = pytest.mark.faults


def command(count: int) -> tuple[str, ...]:
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(count))
    return (sys.executable, "-m", "pipeline.cli", "train", "--workers", addresses, "--trusted-network")


def find_stage(project: Project, number: int) -> psutil.Process | None:
    """The process of the stage of a worker."""
    for process in psutil.process_iter(["cwd", "cmdline", "environ"]):
        config = (process.info["environ"] or {}).get("TF_CONFIG", "")
        is_stage = "pipeline.stages.train" in (process.info["cmdline"] or [])
        if process.info["cwd"] == str(project.path) and is_stage and f'"index": {number}' in config:
            return process
    return None


def test_workers_are_started_watched_and_resumed(trained: Project) -> None:
    refused = trained.run(*command(2), check=False)
    assert refused.returncode == 1
    assert "expected: train.data_parallel: multi_worker" in refused.stdout

    small = {"train.epochs": 40, "train.widths": [32], "train.xla": "never", "train.data_parallel": "multi_worker"}
    trained.set_params(**small)
    refused = trained.run(*command(2)[:-1], check=False)
    assert refused.returncode == 1
    assert "remedy:   if it is so, add --trusted-network" in refused.stdout

    running = trained.start(*command(2))
    checkpoints = trained.path / ".pipeline/checkpoints"
    wait_until(lambda: list(checkpoints.glob("*.npz")))
    worker = find_stage(trained, 1)
    assert worker
    worker.kill()
    shown, _ = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "worker 1 at 127.0.0.1:" in shown
    assert "was killed by SIGKILL, so the training stopped" in shown
    wait_until_idle(trained)

    refused = trained.run(*command(3), check=False)
    assert refused.returncode == 1
    assert "an unfinished training cannot continue with 3 workers" in refused.stdout
    assert "expected: 2, as it started" in refused.stdout

    killed = trained.start(*command(2))
    wait_until(lambda: find_stage(trained, 1))
    killed.kill()
    killed.communicate()
    wait_until_idle(trained)

    shown = trained.run(*command(2)).stdout
    assert "from checkpoint" in shown
    assert "2 replicas" in shown
    assert "the training is complete" in shown
    assert not (trained.path / ".pipeline/training-workers.json").exists()
    wait_until_idle(trained)

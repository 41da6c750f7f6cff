"""A retraining that a reboot interrupts. `tests/e2e/test_faults.py` has the random kills."""

import os
from pathlib import Path

import pytest
import yaml

from pipeline.files import write_json
from pipeline.server_addresses import STACK_FILE
from pipeline.temporary_checkout import RETRAININGS
from tests.conftest import Project
from tests.e2e.kills import checkouts_and_partials, kill_everything
from tests.e2e.test_repro import aliases_of, lock_of, runs_of
from tests.processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]


def test_after_a_reboot_during_training_the_retraining_resumes_to_the_same_bytes(
    trained: Project, tmp_path: Path
) -> None:
    undisturbed = trained.copy_to(tmp_path / "undisturbed")
    undisturbed.set_params(**{"train.seed": 9, "train.epochs": 12})
    undisturbed.repro("train")

    retrain = ("python", "-m", "pipeline.cli", "retrain", "--set=train.seed=9", "--set=train.epochs=12")
    running = trained.start(*retrain)
    wait_until(lambda: any(trained.path.glob(".pipeline/checkpoints/*.npz")) or running.poll() is not None)
    kill_everything(trained)
    output, _ = running.communicate()
    assert list((trained.path / RETRAININGS).glob("*")), output
    (checkout,) = (trained.path / RETRAININGS).iterdir()
    # All that they left in a list by their number: after a reboot, another process has it.
    us, half = {"pid": os.getpid(), "cmd": "dvc repro"}, "reports/.registration.json.0123abcd.partial"
    for directory in (trained.path, checkout):
        write_json(directory / ".dvc/tmp/rwlock", {"write": {str(directory / "models/model.keras"): us}, "read": {}})
        (directory / half).write_text("half")
    for name in ("the-flow", "retraining", "the-runner"):
        write_json(trained.path / f".pipeline/locks/{name}.json", {"pid": os.getpid(), "since": "before"})
    write_json(trained.path / STACK_FILE, {"pid": os.getpid(), "mlflow": "http://127.0.0.1:9"})

    output = trained.run(*retrain).stdout
    assert "from checkpoint" in output
    assert checkouts_and_partials(trained) == ([], [str(trained.path / half)])
    (branch,) = trained.run("git", "for-each-ref", "--format=%(refname)", "refs/heads/retrain").stdout.split()
    lock = yaml.safe_load(trained.run("git", "show", f"{branch}:dvc.lock").stdout)
    model = next(out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "models/model.keras")
    assert model == lock_of(undisturbed)["train"]["models/model.keras"]
    statuses = [status for _, status in runs_of(trained)]
    assert statuses.count("FINISHED") == 3  # the template's training, and this one with its flow
    assert "RUNNING" not in statuses
    assert "2" in aliases_of(trained).values()
    trained.set_params(**{"train.seed": 9, "train.epochs": 12})
    assert trained.run("python", "-m", "pipeline.cli", "run").stdout.count("restored") >= 2
    assert checkouts_and_partials(trained) == ([], [])

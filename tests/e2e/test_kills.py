"""Processes killed at bad moments: nothing runs on, nothing is lost, and the next run ends as if undisturbed."""

import json
import shutil
import subprocess

import psutil
import pytest

from tests.conftest import DECLARED_STAGES, STAGES, Project, stages_that_ran
from tests.e2e.test_repro import aliases_of, lock_of
from tests.processes import wait_until, wait_until_idle

pytestmark = pytest.mark.faults


def stage_process(project: Project, running: subprocess.Popen[str], stage: str) -> psutil.Process:
    """Wait until a stage works, which the holder of its lock does. Returns its process."""
    holder = project.path / f".pipeline/locks/stage-{stage}.json"
    wait_until(lambda: (holder.exists() and holder.read_text()) or running.poll() is not None)
    assert running.poll() is None, running.communicate()[0]
    return psutil.Process(json.loads(holder.read_text())["pid"])


@pytest.mark.parametrize(("stage", "victim"), zip(STAGES, ("the stage", "dvc") * 3, strict=True))
def test_a_killed_stage_runs_again_to_the_same_bytes(trained: Project, stage: str, victim: str) -> None:
    """By turns the stage itself is killed, and DVC, without which every stage ends by the same code.

    Together they run all six stages again on the same inputs: the same bytes, and no second version of the model.
    """
    before = lock_of(trained)
    running = trained.start("dvc", "repro", "--force", "--single-item", stage)
    process = stage_process(trained, running, stage)
    (process if victim == "the stage" else psutil.Process(running.pid)).kill()
    running.communicate()
    wait_until_idle(trained)
    assert stages_that_ran(trained.repro("--force", "--single-item", stage).stdout) == [stage]
    assert lock_of(trained) == before
    assert trained.repro().stdout.count("didn't change, skipping") == len(DECLARED_STAGES)
    assert trained.run("git", "status", "--porcelain").stdout == ""
    assert aliases_of(trained) == {("tiny", "champion"): "1"}
    assert not [path for path in trained.path.rglob("*.partial") if ".dvc" not in path.parts]


def test_a_lost_store_is_rebuilt_by_a_run_that_runs_no_stage(trained: Project) -> None:
    before = lock_of(trained)
    (trained.path / "mlflow.db").unlink()
    shutil.rmtree(trained.path / "mlruns", ignore_errors=True)
    output = trained.run("pipeline", "run").stdout
    assert "Running stage" not in output
    assert lock_of(trained) == before
    assert aliases_of(trained) == {("tiny", "champion"): "1"}
    check = "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]); mlflow.keras.load_model('models:/tiny@champion')"
    store = f"sqlite:///{trained.path / 'mlflow.db'}"
    loaded = subprocess.run(
        ["python", "-c", check, store], cwd="/", env=trained.environment, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr


def test_an_unreachable_tracking_server_is_named_and_nothing_is_lost(trained: Project) -> None:
    before = lock_of(trained)
    trained.set_params(**{"train.seed": 9})
    result = trained.repro(check=False, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert result.returncode != 0
    assert "http://127.0.0.1:9" in result.stdout
    assert "Traceback" not in result.stdout
    assert lock_of(trained) == before
    assert aliases_of(trained) == {("tiny", "champion"): "1"}
    trained.run("git", "checkout", "--quiet", "params.yaml")
    assert stages_that_ran(trained.repro().stdout) == []  # the former outputs come from the cache

"""`pipeline up` with parts that do not start, or do not stay."""

import os

from pipeline.server_addresses import LOCK
from pipeline.workspace import lock
from tests.conftest import Project
from tests.e2e.servers import find_free_port
from tests.processes import processes_of

NOBODY = "http://127.0.0.1:9"


def test_a_server_that_cannot_start_ends_all_of_it_and_says_why(stand_ins: Project) -> None:
    (stand_ins.path / "mlflow.db").write_bytes(b"no database" * 1000)
    command = ("python", "-m", "pipeline.cli", "up", "--only", "mlflow", "--mlflow-port", str(find_free_port()))
    result = stand_ins.run(*command, check=False)
    assert result.returncode == 1
    assert "mlflow did not start" in result.stdout
    assert f"mv {stand_ins.path}/mlflow.db" in result.stdout
    assert "Traceback" not in result.stdout
    assert processes_of(stand_ins) == []
    assert not (stand_ins.path / ".pipeline/stack.json").exists()


def test_two_projects_do_not_serve_from_one_home_of_prefects(stand_ins: Project) -> None:
    command = ("python", "-m", "pipeline.cli", "up", "--only", "prefect", "--prefect-port", str(find_free_port()))
    with lock(LOCK, wait=0, remedy="", root=stand_ins.home / "prefect"):  # as another project's `pipeline up` does
        refused = stand_ins.run(*command, check=False)
        moved = stand_ins.run(*command, "--data", str(stand_ins.home), check=False)
    assert (refused.returncode, moved.returncode) == (1, 1)
    assert f"another project's `pipeline up` uses Prefect's home {stand_ins.home}/prefect" in refused.stdout
    assert f"process {os.getpid()}" in refused.stdout
    assert "pipeline up --data DIRECTORY" in refused.stdout
    assert not (stand_ins.path / ".pipeline/settings.json").exists()  # what was refused has moved nothing


def test_a_part_that_keeps_ending_is_given_a_rest(stand_ins: Project) -> None:
    elsewhere = {"MLFLOW_TRACKING_URI": NOBODY, "PREFECT_API_URL": f"{NOBODY}/api"}
    running = stand_ins.start("python", "-m", "pipeline.cli", "up", **elsewhere)
    lines: list[str] = []
    assert running.stdout
    for line in running.stdout:
        lines.append(line)
        if "next start in 60 s" in line:
            running.terminate()
    assert running.wait() == 0, "".join(lines)
    shown = "".join(lines)
    assert shown.count("does not answer") == 5
    assert shown.count("exit code 1; restarting it") == 4
    assert "up      | INFO    starting runner;" in shown
    assert processes_of(stand_ins) == []

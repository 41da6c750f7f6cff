"""The exit code of a worker: of its process, and for the chief, of the stage that DVC ran."""

import subprocess

import pytest

from pipeline.scale.addresses import Address
from pipeline.scale.training import Worker, _explain

FAILED = "ERROR: failed to reproduce 'train': failed to run: python -m pipeline.stages.train, exited with"


@pytest.mark.parametrize(
    ("number", "script", "line", "said"),
    [
        (1, "kill -9 $$", "", "worker 1 at here:9001 was killed by SIGKILL"),
        (1, "exit 1", "", "worker 1 at here:9001 ended with exit code 1"),
        (0, "exit 255", f"{FAILED} -9", r"worker 0 at here:9001 \(the chief\) was killed by SIGKILL"),
        (0, "exit 255", f"{FAILED} 137", r"worker 0 at here:9001 \(the chief\) was killed by SIGKILL"),
        (0, "exit 255", f"{FAILED} 1", r"worker 0 at here:9001 \(the chief\) ended with exit code 1"),
    ],
)
def test_a_failed_worker_is_named_with_the_end_of_its_stage(number: int, script: str, line: str, said: str) -> None:
    with subprocess.Popen(["sh", "-c", script], text=True) as process:
        worker = Worker(number, Address("here", 9001, True), process)
        worker.lines.append(line)
    assert str(_explain(worker)).startswith(said.replace("\\", ""))

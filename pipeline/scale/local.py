"""Workers of this machine that belong to one process, as processes of their own.

`python -m pipeline.scale.local WORKERS` prints the address of their scheduler. They are not started by the process that
needs them: its main module, which the workers would import, may be any script.
"""

import subprocess
import sys
import threading

from pipeline.errors import WorkspaceError
from pipeline.process_lifetime import signals_as_exceptions

STOP_SECONDS = 10


def start_workers(workers: int) -> tuple[str, subprocess.Popen[str]]:
    """Start workers that end with this process, even after `kill -9`. Returns the address of their scheduler."""
    command = [sys.executable, "-m", "pipeline.process_lifetime", __name__, str(workers)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    if not (address := process.stdout.readline().strip()):
        raise WorkspaceError(
            f"cannot start {workers} Dask workers", found=f"exit code {process.wait()}", remedy="see the error above"
        )
    return address, process


def stop_workers(process: subprocess.Popen[str]) -> None:
    """Stop the workers and wait for their end."""
    assert process.stdin
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _serve(workers: int) -> None:
    from pipeline.scale.certificates import ensure_certificate
    from pipeline.scale.processes import start_cluster

    with signals_as_exceptions(), start_cluster(workers, ensure_certificate()) as cluster:
        print(cluster.scheduler_address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

"""The executor of `pipeline.partitions`: the cluster in PIPELINE_DASK, or local workers by `scale.workers`.

Imports nothing of Dask unless one of them is set.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.extras import require_packages
from pipeline.files import parse_yaml
from pipeline.partitions import Executor

ADDRESS = "PIPELINE_DASK"  # variable: the address of a scheduler
IS_WORKER = "PIPELINE_DASK_WORKER"  # variable: set in the processes of workers, which start no workers of their own


def find_executor() -> AbstractContextManager[Executor] | None:
    """Return the configured executor. None if there is none.

    Raises:
        WorkspaceError: Dask is not installed, or the address is not that of a cluster with TLS.
        ParamsError: params.yaml sets `scale.workers`, and cannot be used.
    """
    if IS_WORKER in os.environ:
        return None
    if address := os.environ.get(ADDRESS):
        require_packages(ADDRESS, "distributed")
        require_tls(address)
        from pipeline.scale.client import use_cluster

        return use_cluster(address)
    if workers := _read_workers():
        require_packages("scale.workers in params.yaml", "distributed")
        from pipeline.scale.client import use_local_workers

        return use_local_workers(workers)
    return None


def require_tls(address: str) -> None:
    """Refuse an address without TLS: whoever can send messages to a worker can execute code there."""
    if not address.startswith("tls://"):
        raise WorkspaceError(
            f"{ADDRESS} is not the address of a cluster with TLS", expected="tls://HOST:PORT", found=address
        )


def _read_workers() -> int:
    """Return `scale.workers`. 0 outside a project, and in the checkout of a commit from before this section."""
    try:
        content = parse_yaml(Path("params.yaml").read_bytes())
        if not content["scale"]["workers"]:  # the usual case, in a few milliseconds
            return 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    from pipeline.params import load_params
    from pipeline.scale.params import ScaleParams

    return load_params().section(ScaleParams).workers

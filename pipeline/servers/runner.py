"""`python -m pipeline.servers.runner`: serve the deployments on this machine until SIGTERM. `pipeline up` starts it.

Prefect reads the address of its server when it is imported. This module sets it, and only then imports
`pipeline.servers.runner_loop`, which does the work.
"""

import asyncio
import logging
import os
import sys

from pipeline import logs
from pipeline.errors import PipelineError
from pipeline.proxies import bypass_proxy
from pipeline.servers.prefect_connection import use_permanent_server
from pipeline.workspace import find_workspace, lock, main_repository

WAIT_SECONDS = 30  # for the previous runner, which may still be ending a stage


def main() -> int:
    """Serve the deployments. Returns 0 after SIGTERM or Ctrl-C, or the exit code of an error."""
    try:
        logs.configure("runner")
        root = main_repository(find_workspace())
        os.chdir(root)
        bypass_proxy()
        os.environ["PREFECT_RUNNER_SERVER_ENABLE"] = "false"  # any user of this machine could send it commands
        use_permanent_server(root)
        from pipeline.servers.runner_loop import serve

        with lock("the runner", wait=WAIT_SECONDS, remedy="use that one, or end that process", root=root):
            asyncio.run(serve(root))
    except PipelineError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

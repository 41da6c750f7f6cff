"""`python -m pipeline.servers.runner`: serve the deployments on this machine until SIGTERM. `pipeline up` starts it.

This module chooses the server, which Prefect reads when it is imported; `pipeline.servers.runner_loop` does the rest.
"""

import asyncio
import os
import sys

from pipeline.errors import PipelineError
from pipeline.proxies import bypass_proxy
from pipeline.servers.prefect_connection import use_lasting_server
from pipeline.workspace import find_workspace, lock, main_repository

WAIT_SECONDS = 30  # for a former runner to end, which may be stopping a stage


def main() -> int:
    """Serve. The exit code is 0 after SIGTERM or Ctrl-C, and an error's own otherwise."""
    try:
        root = main_repository(find_workspace())
        os.chdir(root)
        bypass_proxy()
        os.environ["PREFECT_RUNNER_SERVER_ENABLE"] = "false"  # it would take commands from everybody on this machine
        use_lasting_server(root)
        from pipeline.servers.runner_loop import serve

        with lock("the runner", wait=WAIT_SECONDS, remedy="use that one, or end that process", root=root):
            asyncio.run(serve(root))
    except PipelineError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

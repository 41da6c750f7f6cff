"""A program that ends with the process that started it, however that ended.

`python -m pipeline.flows.attached MODULE ARGUMENTS` is `python -m MODULE ARGUMENTS` with a pipe as standard input. It
closes when its starter is gone: the operating system closes it after `kill -9`, too.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE_SECONDS = 20  # for what it has to put down, and for a runner to end its flow runs


def end_with_input() -> None:
    """End this process, and all of its group if it leads one, when its standard input closes: politely, then not."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-input", daemon=True).start()


if __name__ == "__main__":
    end_with_input()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

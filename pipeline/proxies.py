"""Requests to this machine go directly, also where the environment names an HTTP proxy."""

import os

OWN = ("127.0.0.1", "localhost", "::1")  # each by itself: urllib and httpx do not understand 127.0.0.0/8
VARIABLES = ("no_proxy", "NO_PROXY")


def bypass_proxy(*hosts: str) -> None:
    """Add this machine's addresses to `no_proxy` of this process and of those that it starts.

    What stands there is kept. Requests to other machines use the proxy as before.

    Args:
        hosts: other names of this machine.
    """
    former = [name.strip() for variable in VARIABLES for name in os.environ.get(variable, "").split(",")]
    if "*" in former:  # every machine; only understood alone
        return
    names = ",".join(dict.fromkeys(name for name in (*former, *OWN, *hosts) if name))
    os.environ.update(dict.fromkeys(VARIABLES, names))

"""Bypass the HTTP proxy of the environment for requests to this machine."""

import os

OWN = ("127.0.0.1", "localhost", "::1")  # one by one: urllib and httpx do not support 127.0.0.0/8
VARIABLES = ("no_proxy", "NO_PROXY")


def bypass_proxy(*hosts: str) -> None:
    """Add this machine's addresses to `no_proxy` of this process and of those that it starts.

    Existing entries are kept. Requests to other machines use the proxy as before.

    Args:
        hosts: other names of this machine.
    """
    former = [name.strip() for variable in VARIABLES for name in os.environ.get(variable, "").split(",")]
    if "*" in former:  # all hosts bypass the proxy; `*` works only alone
        return
    names = ",".join(dict.fromkeys(name for name in (*former, *OWN, *hosts) if name))
    os.environ.update(dict.fromkeys(VARIABLES, names))

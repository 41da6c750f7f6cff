"""The permanent Prefect server. Schedules and triggers need one: a temporary server ends with its run."""

import os
from pathlib import Path

from pipeline.errors import FlowError
from pipeline.flows.prefect_server import require_response, settings
from pipeline.server_addresses import find_server, prefect_credentials


def use_permanent_server(root: Path) -> str:
    """Connect Prefect to the configured server or to that of `pipeline up`. Call this before Prefect is imported.

    Returns:
        the address of its API.

    Raises:
        FlowError: there is no server, or it does not respond.
    """
    for name, value in settings(root).items():
        os.environ.setdefault(name, value)
    url = os.environ.get("PREFECT_API_URL") or find_server(root, "prefect") or _configured_elsewhere()
    if not url:
        raise FlowError(
            "no Prefect server is up",
            expected="the one of `pipeline up`, or another's address in PREFECT_API_URL",
            found="no server of `pipeline up`, and PREFECT_API_URL is not set",
            remedy="pipeline up, in another terminal or as a service; then run the same command again",
        )
    require_response(url)
    os.environ.update({"PREFECT_API_URL": url, **prefect_credentials(root, url)})
    return url


def _configured_elsewhere() -> str | None:
    """Return the address in a Prefect profile or in `prefect.toml`."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url

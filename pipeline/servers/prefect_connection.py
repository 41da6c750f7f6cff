"""The Prefect server that stays: schedules, the runner and triggers need one; a run's temporary server does not do."""

import os
from pathlib import Path

from pipeline.errors import FlowError
from pipeline.flows.prefect_server import require_answer, settings
from pipeline.stack import find_server, prefect_credentials


def use_lasting_server(root: Path) -> str:
    """Have Prefect, which must not be imported before, use the server that is configured or that of `pipeline up`.

    Returns:
        the address of its API.

    Raises:
        FlowError: there is none, or it does not answer.
    """
    for name, value in settings(root).items():
        os.environ.setdefault(name, value)
    url = os.environ.get("PREFECT_API_URL") or find_server(root, "prefect") or _configured_elsewhere()
    if not url:
        raise FlowError(
            "no Prefect server is up",
            expected="the one of `pipeline up`, or another's address in PREFECT_API_URL",
            found="neither",
            remedy="pipeline up, in another terminal or as a service; then run the same command again",
        )
    require_answer(url)
    os.environ.update({"PREFECT_API_URL": url, **prefect_credentials(root, url)})
    return url


def _configured_elsewhere() -> str | None:
    """The server that a profile or `prefect.toml` names."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url

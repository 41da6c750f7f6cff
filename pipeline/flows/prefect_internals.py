"""Functions of Prefect that are not part of its documented interface.

`tests/unit/test_prefect_internals.py` fails if an upgrade removes one. Prefect is imported inside the functions: its
settings must be in the environment before.
"""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from prefect.server.database import PrefectDBInterface
    from starlette.types import ASGIApp


def send_buffered_records(seconds: float) -> bool:
    """Send the logs and events that this process has buffered. Returns False if not all were accepted in time."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    sent = [cast(Any, worker.drain_all(timeout=seconds)) for worker in (APILogWorker, EventsWorker)]
    return not any(worker.not_done for worker in sent)


def apply_environment() -> None:
    """Read the settings again from the environment."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def disable_client_retries() -> None:
    """Turn off the retries of Prefect's client until this process ends."""
    from prefect.context import SettingsContext, get_settings_context

    context = get_settings_context()
    settings = context.settings.copy_with_update(updates={"client.max_retries": 0})
    SettingsContext(profile=context.profile, settings=settings).__enter__()


def create_server(*, temporary: bool = False) -> "ASGIApp":
    """Create the application of Prefect's server. A temporary one runs no scheduler."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=temporary, final=True)


def database_interface() -> "PrefectDBInterface":
    """Return Prefect's access to its database, with its migrations and tables."""
    from prefect.server.database import provide_database_interface

    return provide_database_interface()

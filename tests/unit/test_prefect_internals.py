"""Functions of Prefect that its documentation does not cover: these tests fail if an upgrade removes one."""

from contextvars import Context

import pytest

from pipeline.flows import prefect_internals


def test_buffered_records_are_sent() -> None:
    assert prefect_internals.send_buffered_records(seconds=5) is True


def test_settings_follow_the_environment_and_retries_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.context import get_settings_context
    from prefect.settings import get_current_settings

    def check() -> None:
        prefect_internals.apply_environment()
        assert get_current_settings().client.max_retries == 7
        prefect_internals.disable_client_retries()
        assert get_current_settings().client.max_retries == 0
        get_settings_context().__exit__()

    with monkeypatch.context() as environment:
        environment.setenv("PREFECT_CLIENT_MAX_RETRIES", "7")
        Context().run(check)  # without the settings that another test has left open
    prefect_internals.apply_environment()


@pytest.mark.parametrize("temporary", [True, False])
def test_the_server_is_an_application_with_prefects_routes(temporary: bool) -> None:
    routes = {str(getattr(route, "path", "")) for route in prefect_internals.create_server(temporary=temporary).routes}
    assert "/api" in routes


def test_the_database_has_migrations() -> None:
    assert callable(prefect_internals.database_interface().run_migrations_upgrade)


def test_the_next_times_of_a_schedule_follow_its_rule_and_time_zone() -> None:
    times = prefect_internals.next_times({"cron": "0 3 * * *", "timezone": "Europe/Berlin"}, 2)
    assert [(time.hour, time.minute, str(time.tzinfo)) for time in times] == [(3, 0, "Europe/Berlin")] * 2
    assert (times[1].date() - times[0].date()).days == 1


def test_a_started_runner_has_a_replaceable_starter() -> None:
    """`test_deployments.py` checks on a server that it then executes only the given entrypoints."""
    from inspect import signature

    from prefect.runner import Runner
    from prefect.runner._scheduled_run_poller import ScheduledRunPoller
    from prefect.runner._starter_engine import EngineCommandStarter

    assert "resolve_starter" in signature(ScheduledRunPoller).parameters
    assert {"tmp_dir", "entrypoint", "deployment_name", "control_channel"} <= signature(
        EngineCommandStarter
    ).parameters.keys()
    runner = Runner(name="test")
    assert all(hasattr(runner, name) for name in ("_tmp_dir", "_control_channel", "_deployment_registry"))

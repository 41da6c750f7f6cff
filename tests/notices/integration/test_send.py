"""Notices, sent by Apprise to a real endpoint on this machine. No secret of an address is printed or logged."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.errors import DataError, FlowError
from pipeline.evaluation.champion_rule import Decision, Outcome
from pipeline.flows.summary import Summary
from pipeline.notices import send
from pipeline.notices.send import URLS_VARIABLE, notify, notify_of_failure, notify_of_run
from pipeline.registry.registration import Registration
from pipeline.registry.sync import Synced
from pipeline.tracking.flow_runs import StageResult
from tests.conftest import REPOSITORY
from tests.documentation import read_blocks
from tests.webhook import PASSWORD, TOKEN, USER, Endpoint, webhook

SECRETS = (USER, PASSWORD, TOKEN)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.delenv(URLS_VARIABLE, raising=False)
    with webhook() as running:
        yield running


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which no process listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def test_a_notice_reaches_every_channel_with_its_text_and_links(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}\n  form://{endpoint.address}")
    notify("drift", "batch march drifted", "Label shares moved.", {"report": "http://127.0.0.1:5000/#/runs/1"})
    as_form, as_json = sorted(endpoint.taken, key=lambda fields: "attachments" in fields)
    for fields in (as_form, as_json):
        assert fields["title"] == "batch march drifted"
        assert fields["message"] == "Label shares moved.\n\nreport: http://127.0.0.1:5000/#/runs/1"
        assert fields["type"] == "warning"


def test_the_commands_of_the_page_send_a_test(endpoint: Endpoint) -> None:
    (script,) = read_blocks("docs/notices.md")
    script = re.sub('".*"', f'"json://{endpoint.address}"', script).replace(
        "pipeline", f"{sys.executable} -m pipeline.cli"
    )
    subprocess.run(["bash", "-euc", script], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    assert [message["type"] for message in endpoint.taken] == ["success"]


def test_text_is_escaped_for_a_channel_that_shows_html(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}?format=html")  # as a mail is by itself
    notify("failed", "train failed", "no commit <main>\n  remedy:   git fetch")
    shown = endpoint.taken[0]["message"].replace("&nbsp;", " ").replace("&ensp;", " ")
    assert re.fullmatch(r"no commit &lt;main&gt;<br ?/?>(\r?\n)?\s*remedy:\s+git fetch", shown), shown


def test_each_failed_channel_prints_a_line_and_no_secret_is_logged(
    endpoint: Endpoint,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(send, "TIME_LIMIT_SECONDS", 2)
    channels = [
        f"json://{endpoint.address}/hang",
        f"json://{endpoint.address}/deny",
        f"json://{USER}:{PASSWORD}@127.0.0.1:{closed_port}/{TOKEN}",
        f"json://{endpoint.address}",
        TOKEN,
        f"unheard-of://{endpoint.address}",
        f"slack://{TOKEN}",  # Slack's has three parts
    ]
    monkeypatch.setenv(URLS_VARIABLE, " ".join(channels))
    with caplog.at_level(logging.DEBUG):
        notify("failed", "train failed", "It did.")
    assert [fields["title"] for fields in endpoint.taken] == ["train failed"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("channel ")[1][0] for line in lines] == ["1", "2", "3", "5", "6", "7"]
    assert "channel 1 (json at 127.0.0.1): no answer within 2 s" in lines[0]
    assert "channel 2 (json at 127.0.0.1): it could not be reached, or refused" in lines[1]
    assert "channel 3 (json at 127.0.0.1): it could not be reached, or refused" in lines[2]
    assert all("not the address of a channel" in line for line in lines[3:])
    for secret in SECRETS:
        assert secret not in caplog.text + "".join(lines)


def test_a_flows_process_prints_the_channel_that_failed(closed_port: int) -> None:
    program = """
import os
from pipeline.flows.prefect_server import SETTINGS
os.environ.update(SETTINGS)
import pipeline.flows.prefect_flow
from pipeline.notices.send import notify
notify("failed", "train failed", "It did.")
"""
    command, channel = [sys.executable, "-c", program], {URLS_VARIABLE: f"json://127.0.0.1:{closed_port}"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | channel, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines() == [
        "the notice 'failed' did not reach channel 1 (json at 127.0.0.1): it could not be reached, or refused"
    ]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"mailto://{USER}:{PASSWORD}@example.com", "mailto at example.com"),
        (f"tgram://123456789:{'a' * 35}/12315544", "tgram"),  # the token stands where others have their host
        ("https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", "https at hooks.slack.com"),
    ],
)
def test_an_address_is_described_without_its_secrets(address: str, shown: str) -> None:
    import apprise

    channel = apprise.Apprise.instantiate(address)
    assert channel is not None
    assert send._describe(address, channel) == shown


def test_passwords_in_text_and_links_are_not_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
    store = f"https://team:{PASSWORD}@mlflow.example.com"
    notify("failed", "train failed", f"{store} does not answer", {"run": f"{store}/#/runs/1"})
    assert PASSWORD not in json.dumps(endpoint.taken)
    assert "https://team:***@mlflow.example.com/#/runs/1" in endpoint.taken[0]["message"]


def test_without_channels_nothing_is_sent_nor_imported() -> None:
    program = f"""
import os, sys
os.environ.pop("{URLS_VARIABLE}", None)
from pipeline.notices.send import notify
notify("failed", "a", "b")
print("apprise" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def _summary(outcome: Outcome, **stages: str) -> Summary:
    version = None if outcome == "rejected" else "4"
    registration = Registration("tiny", version, (), Decision(outcome, "The paragraph."), is_new=True)
    results = [StageResult(name, what, 1.0, "") for name, what in stages.items()]  # type: ignore[arg-type]
    return Summary(results, Synced("digest", "run-1", False, registration), is_whole=True)


@pytest.mark.parametrize(
    ("outcome", "colour", "title"),
    [
        ("champion", "success", "tiny version 4 is promoted to champion"),
        ("challenger", "warning", "tiny version 4 is not promoted and waits as challenger"),
        ("not promoted", "warning", "tiny version 4 is not promoted"),
        ("rejected", "warning", "tiny is rejected"),
    ],
)
def test_a_run_notifies_about_its_decision(
    outcome: Outcome, colour: str, title: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
    notify_of_run(_summary(outcome, train="ran", register="ran"))
    (message,) = endpoint.taken
    assert (message["type"], message["title"]) == (colour, title)
    assert message["message"].startswith("The paragraph.\n\ntraining run: http")


def test_a_run_notifies_about_a_failure_and_not_if_nothing_was_decided(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
    notify_of_run(_summary("champion", train="unchanged", register="unchanged"))
    assert endpoint.taken == []
    notify_of_run(_summary("champion", train="failed", register="not reached"))
    assert endpoint.taken == []
    notify_of_failure("monitor-data", DataError("no batch", remedy="pipeline add-data"))
    (stopped,) = endpoint.taken
    assert (stopped["title"], stopped["type"]) == ("monitor-data failed: no batch", "failure")
    assert "remedy:   pipeline add-data" in stopped["message"]


def test_the_command_prints_the_result_of_each_channel(
    endpoint: Endpoint, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = f"json://{endpoint.address}", f"form://{USER}:{PASSWORD}@127.0.0.1:{closed_port}/{TOKEN}"
    succeeded = CliRunner().invoke(app, ["notify"], env={URLS_VARIABLE: good})
    assert (succeeded.exit_code, succeeded.output.strip()) == (0, "channel 1 (json at 127.0.0.1): sent")
    mixed = CliRunner().invoke(app, ["notify"], env={URLS_VARIABLE: f"{bad} {good}"})
    assert mixed.exit_code == 1
    assert mixed.output.splitlines() == [
        "channel 1 (form at 127.0.0.1): failed: it could not be reached, or refused",
        "channel 2 (json at 127.0.0.1): sent",
    ]
    assert [message["title"] for message in endpoint.taken] == ["a test of the pipeline's notices"] * 2
    monkeypatch.delenv(URLS_VARIABLE, raising=False)
    with pytest.raises(FlowError, match=URLS_VARIABLE):
        send.send_test()

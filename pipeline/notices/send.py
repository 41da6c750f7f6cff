"""Send notices: a model was promoted or rejected, a run failed, a batch was quarantined, data drifted.

`PIPELINE_NOTIFY_URLS` lists the channels, separated by white space, as addresses of Apprise (mail, Slack, a webhook and
a hundred others; https://github.com/caronc/apprise/wiki). If it is empty, nothing is sent.

These addresses are secrets. Only this module reads them, and it never prints one: it names a channel by its number and
kind. If a channel fails, one line goes to standard error. All channels together delay a run by at most
`TIME_LIMIT_SECONDS`, and never fail it.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pipeline.errors import FlowError, PipelineError, WorkspaceError
from pipeline.evaluation.champion_rule import Outcome
from pipeline.events import record_event
from pipeline.extras import require_packages
from pipeline.flows.summary import Summary
from pipeline.redaction import printable, without_password
from pipeline.registry.registration import Registration

Kind = Literal["promoted", "rejected", "failed", "quarantined", "drift"]

URLS_VARIABLE = "PIPELINE_NOTIFY_URLS"
TIME_LIMIT_SECONDS = 20  # for all channels together: each has its own thread
KIND_OF_OUTCOME: Mapping[Outcome, Kind] = {
    "champion": "promoted",
    "challenger": "rejected",
    "not promoted": "rejected",
    "rejected": "rejected",
}
COLOURS: Mapping[Kind, str] = {  # Apprise's `notify_type`
    "promoted": "success",
    "rejected": "warning",
    "failed": "failure",
    "quarantined": "warning",
    "drift": "warning",
}
VERDICTS: Mapping[Outcome, str] = {
    "champion": "is promoted to champion",
    "challenger": "is not promoted and waits as challenger",
    "not promoted": "is not promoted",
    "rejected": "is rejected",
}

_SENDER = "notice"  # name of the threads that handle addresses


@dataclass(frozen=True)
class Delivery:
    """The result of sending a message to one channel."""

    channel: str  # "channel 1 (json at 127.0.0.1)": no part of its address that could be a secret
    problem: str  # empty if it was sent


def notify(kind: Kind, title: str, text: str, links: Mapping[str, str] = {}) -> None:
    """Send a notice to every channel. Never raises: for each channel that fails, print a line on standard error.

    Args:
        kind: the event, which also sets the colour of the message in channels with colours.
        title: one line.
        text: one paragraph, such as a decision's reason or an error's message.
        links: addresses by their label.
    """
    try:
        deliveries = deliver(kind, title, text, links)
    except WorkspaceError as error:  # Apprise is not installed
        _print(f"the notice {kind!r} was not sent: {error.problem}; run: {error.remedy}")
        return
    except Exception as error:  # a notice must not fail the run
        _print(f"the notice {kind!r} was not sent: {type(error).__name__}")
        return
    for delivery in deliveries:
        if delivery.problem:
            _print(f"the notice {kind!r} did not reach {delivery.channel}: {delivery.problem}")


def notify_of_run(summary: Summary) -> None:
    """Notify about a training run's decision. For a run that fails, the caller catches the error and notifies."""
    decided = any(result.stage == "register" and result.outcome == "ran" for result in summary.stages)
    if decided and summary.synced.registration:
        notify_of_decision(summary.synced.registration, summary.links())


def notify_of_decision(registration: Registration, links: Mapping[str, str] = {}) -> None:
    """Notify about a decision on a model, with its reason."""
    decision = registration.decision
    model = f"{registration.name} version {registration.version}" if registration.version else registration.name
    notify(KIND_OF_OUTCOME[decision.outcome], f"{model} {VERDICTS[decision.outcome]}", decision.reason, links)


def notify_of_failure(flow: str, error: BaseException) -> None:
    """Notify that a flow ended with an error.

    Args:
        flow: the name of the flow: `train`, `retrain`, `monitor-data`.
    """
    problem = error.problem if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    record_event("run.failed", {"flow": flow, "problem": without_password(problem)})
    notify("failed", f"{flow} failed: {problem}", str(error))


def send_test() -> list[Delivery]:
    """Send a test message.

    Raises:
        FlowError: no channel is configured.
        WorkspaceError: Apprise is not installed.
    """
    if not _read_urls():
        raise FlowError(
            "there is no channel to notify",
            expected=f"addresses of channels in {URLS_VARIABLE}, with white space between them",
            found="none",
            remedy=f"export {URLS_VARIABLE}='mailto://USER:PASSWORD@example.com' (docs/notices.md), then run it again",
        )
    text = "This is a test. Notices of promotions, rejections, failures, quarantined batches and drift are sent here."
    return deliver("promoted", "a test of the pipeline's notices", text)


def deliver(kind: Kind, title: str, text: str, links: Mapping[str, str] = {}) -> list[Delivery]:
    """Send a message to every channel, and return the result of each.

    Raises:
        WorkspaceError: Apprise is not installed.
    """
    urls = _read_urls()
    if not urls:
        return []
    require_packages(URLS_VARIABLE, "apprise")
    body = "\n".join([text, *([""] if links else []), *(f"{name}: {address}" for name, address in links.items())])
    _silence_senders()
    # Threads instead of a pool: a channel that hangs must not block the others or the exit of this process.
    messages = [_Message(number, url, kind, *map(without_password, (title, body))) for number, url in urls.items()]
    threads = [threading.Thread(target=message.send, name=_SENDER, daemon=True) for message in messages]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return [message.delivery for message in messages]


class _Message:
    """A message to one channel, and its result."""

    def __init__(self, number: int, url: str, kind: Kind, title: str, body: str) -> None:
        self._number, self._url, self._kind, self._title, self._body = number, url, kind, title, body
        self._channel = f"channel {number}"
        self._problem = f"no answer within {TIME_LIMIT_SECONDS} s"

    @property
    def delivery(self) -> Delivery:
        return Delivery(self._channel, self._problem)

    def send(self) -> None:
        try:
            self._problem = self._send()
        except Exception as error:  # of any Apprise plugin; its text may contain the address
            self._problem = type(error).__name__

    def _send(self) -> str:
        import apprise

        channel = apprise.Apprise.instantiate(self._url)
        if channel is None:
            return f"{URLS_VARIABLE} has something in this place that is not the address of a channel"
        self._channel += f" ({_describe(self._url, channel)})"
        sender = apprise.Apprise()  # converts plain text to the channel's format, such as HTML
        sender.add(channel)
        is_sent = sender.notify(
            self._body,
            self._title,
            notify_type=apprise.NotifyType(COLOURS[self._kind]),
            body_format=apprise.NotifyFormat.TEXT,
        )
        return "" if is_sent else "it could not be reached, or refused"


def _print(line: str) -> None:
    """Print a line to standard error. A flow's process shows no warnings, because Prefect controls its loggers."""
    print(printable(line), file=sys.stderr, flush=True)


def _describe(url: str, channel: object) -> str:
    """Describe a channel without its secrets.

    The host is included only if every form of the service's addresses has one. Otherwise its place may hold a token.
    """
    address = urlsplit(url)
    templates = getattr(channel, "templates", ())
    has_host = address.scheme in ("http", "https") or all("{host}" in template for template in templates)
    return f"{address.scheme} at {address.hostname}" if has_host else address.scheme


def _read_urls() -> dict[int, str]:
    """Read the addresses, numbered from 1."""
    return dict(enumerate(os.environ.get(URLS_VARIABLE, "").split(), start=1))


def _silence_senders() -> None:
    """Drop what Apprise and urllib3 log in the threads that handle addresses, even at DEBUG: it quotes them."""
    for name in ("apprise", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_is_from_elsewhere)


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != _SENDER

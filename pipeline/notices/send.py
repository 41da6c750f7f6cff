"""Notices to people: a model was promoted or rejected, a run failed, a batch was quarantined, data drifted.

They go to every channel that `PIPELINE_NOTIFY_URLS` names: addresses as Apprise understands them (mail, Slack, a
webhook and a hundred others; https://github.com/caronc/apprise/wiki), with white space between. Without any nothing is
sent.

Such an address is a secret. It is read here alone and never shown: a channel is known by its number and its kind. A
channel that does not answer costs a line on standard error and at most `TIME_LIMIT_SECONDS`, and never a run.
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

from pipeline.errors import FlowError, PipelineError
from pipeline.evaluation.champion_rule import Outcome
from pipeline.flows.summary import Summary
from pipeline.redaction import printable, without_password
from pipeline.registry.registration import Registration

Kind = Literal["promoted", "rejected", "failed", "quarantined", "drift"]

URLS_VARIABLE = "PIPELINE_NOTIFY_URLS"
TIME_LIMIT_SECONDS = 20  # for all channels together: they are asked beside each other
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

_SENDER = "notice"  # the name of the threads that hold addresses


@dataclass(frozen=True)
class Delivery:
    """What became of a message in one channel."""

    channel: str  # "channel 1 (json at 127.0.0.1)": nothing of its address that could be a secret
    problem: str  # empty: it went


def notify(kind: Kind, title: str, text: str, links: Mapping[str, str] = {}) -> None:
    """Tell people that something happened. It raises nothing; a channel that refuses costs a line on standard error.

    Args:
        kind: what happened; it gives the message its colour where a channel has colours.
        title: one line.
        text: a paragraph: of a decision its reason, of a failure its message.
        links: addresses to look at, by what they show.
    """
    try:
        deliveries = deliver(kind, title, text, links)
    except Exception as error:  # a notice must not end the run that it tells of
        _say(f"the notice {kind!r} was not sent: {type(error).__name__}")
        return
    for delivery in deliveries:
        if delivery.problem:
            _say(f"the notice {kind!r} did not reach {delivery.channel}: {delivery.problem}")


def notify_of_run(summary: Summary) -> None:
    """Tell what a training run decided about a model. One that failed raises, and is told of by who catches that."""
    decided = any(result.stage == "register" and result.outcome == "ran" for result in summary.stages)
    if decided and summary.synced.registration:
        notify_of_decision(summary.synced.registration, summary.links())


def notify_of_decision(registration: Registration, links: Mapping[str, str] = {}) -> None:
    """Tell what became of a model, with the decision's paragraph."""
    decision = registration.decision
    model = f"{registration.name} version {registration.version}" if registration.version else registration.name
    notify(KIND_OF_OUTCOME[decision.outcome], f"{model} {VERDICTS[decision.outcome]}", decision.reason, links)


def notify_of_failure(flow: str, error: BaseException) -> None:
    """Tell that a flow ended with an error.

    Args:
        flow: its name: `train`, `retrain`, `monitor-data`.
    """
    problem = error.problem if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    notify("failed", f"{flow} failed: {problem}", str(error))


def send_test() -> list[Delivery]:
    """Send a message that says it is a test.

    Raises:
        FlowError: no channel is configured.
    """
    if not _read_urls():
        raise FlowError(
            "there is nobody to notify",
            expected=f"addresses of channels in {URLS_VARIABLE}, with white space between them",
            found="none",
            remedy=f"export {URLS_VARIABLE}='mailto://USER:PASSWORD@example.com' (docs/notices.md), then run it again",
        )
    text = "This is a test. Notices of promotions, rejections, failures, quarantined batches and drift come this way."
    return deliver("promoted", "a test of the pipeline's notices", text)


def deliver(kind: Kind, title: str, text: str, links: Mapping[str, str] = {}) -> list[Delivery]:
    """Send a message to every channel, and say for each what became of it."""
    urls = _read_urls()
    if not urls:
        return []
    body = "\n".join([text, *([""] if links else []), *(f"{name}: {address}" for name, address in links.items())])
    _silence_senders()
    # A thread for each, not a pool: one that hangs must keep neither the others nor the end of this process.
    messages = [_Message(number, url, kind, *map(without_password, (title, body))) for number, url in urls.items()]
    threads = [threading.Thread(target=message.send, name=_SENDER, daemon=True) for message in messages]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return [message.delivery for message in messages]


class _Message:
    """A message on its way to one channel."""

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
        except Exception as error:  # of any of a hundred plugins; its text may hold the address
            self._problem = type(error).__name__

    def _send(self) -> str:
        import apprise

        channel = apprise.Apprise.instantiate(self._url)
        if channel is None:
            return f"{URLS_VARIABLE} has something in this place that is not the address of a channel"
        self._channel += f" ({_describe(self._url, channel)})"
        sender = apprise.Apprise()  # which turns plain text into what the channel shows, HTML for instance
        sender.add(channel)
        went = sender.notify(
            self._body,
            self._title,
            notify_type=apprise.NotifyType(COLOURS[self._kind]),
            body_format=apprise.NotifyFormat.TEXT,
        )
        return "" if went else "it could not be reached, or refused"


def _say(line: str) -> None:
    """Print, because a flow's process shows no warnings: Prefect has the loggers then, and is told to be quiet."""
    print(printable(line), file=sys.stderr, flush=True)


def _describe(url: str, channel: object) -> str:
    """What an address may be called by. Its host is one only where every form of the service's addresses has a host:
    in the others the same place holds a token."""
    address = urlsplit(url)
    templates = getattr(channel, "templates", ())
    has_host = address.scheme in ("http", "https") or all("{host}" in template for template in templates)
    return f"{address.scheme} at {address.hostname}" if has_host else address.scheme


def _read_urls() -> dict[int, str]:
    """The addresses, by their place from 1."""
    return dict(enumerate(os.environ.get(URLS_VARIABLE, "").split(), start=1))


def _silence_senders() -> None:
    """Keep what the threads that hold addresses log, also at the level DEBUG, from every log: it quotes them."""
    for name in ("apprise", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_is_from_elsewhere)


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != _SENDER

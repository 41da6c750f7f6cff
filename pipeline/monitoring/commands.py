"""`pipeline monitor`: drift of the batches, or of the traffic of a server, from the training data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import UNATTENDED, command, console, enter_workspace, print_json

if TYPE_CHECKING:
    from pipeline.monitoring.drift import BatchDrift
    from pipeline.monitoring.run import Monitoring


@command(UNATTENDED, 30)
def monitor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    traffic: Annotated[
        bool, typer.Option("--traffic", help="Compare what a server was asked, not the batches.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="With --traffic: length of a window, such as 90m or 7d; by default 24h."),
    ] = None,
) -> None:
    """Compare each batch in `data/incoming/` with the training data: labels, features, the champion's confidence.

    With --traffic, compare the last windows of the traffic log: features, predicted classes, confidence, and the share
    of images that look like nothing trained on. The report also estimates the accuracy.

    It trains nothing. Drift is a finding, not a failure: the exit code is 0.

    Examples:

        pipeline monitor
        pipeline monitor --json
        pipeline monitor --traffic --since 24h
    """
    workspace = enter_workspace()
    if traffic:
        _monitor_traffic(workspace, since or "24h", as_json)
        return
    if since:
        raise typer.BadParameter("it is for --traffic only", param_hint="--since")
    from pipeline.monitoring import run

    with console.status("comparing the batches with the training data"):
        found = run.monitor(workspace)
    report = found.report.relative_to(workspace)
    if as_json:
        print_json(_describe(found) | {"report": str(report)})
        return
    if found.batches:
        console.print(_tabulate(found.batches), "effect sizes; *: drifted")
    for name, reason in found.unreadable.items():
        console.print(f"{name} cannot be read: {reason}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"confidence: {found.champion}", markup=False, soft_wrap=True)
    console.print(found.sentence, style="bold" if found.drifted else "", markup=False, soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)


def _monitor_traffic(workspace: Path, since: str, as_json: bool) -> None:
    from pipeline.monitoring.traffic import monitor_traffic, parse_length
    from pipeline.monitoring.traffic_report import describe

    length = parse_length(since)
    with console.status("comparing the traffic with the training data"):
        found = monitor_traffic(workspace, length)
    report = found.report.relative_to(workspace)
    if as_json:
        print_json(describe(found) | {"report": str(report)})
        return
    if found.windows:
        console.print(_tabulate_windows(found.windows), "effect sizes of the windows (UTC); *: drifted")
    if found.reference:
        console.print(f"compared with {found.reference.description}", markup=False, soft_wrap=True)
    console.print(found.sentence, style="bold" if found.drifted else "", markup=False, soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)


def _tabulate(batches: "Sequence[BatchDrift]") -> Table:
    """Tabulate the effect sizes; a star marks drifted quantities."""
    from pipeline.monitoring.report import list_quantities

    quantities = list_quantities(batches)
    numbers = (Column(title, justify="right", no_wrap=True) for title in ("images", *quantities))
    table = Table(Column("batch", overflow="fold"), *numbers, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for batch in batches:
        table.add_row(Text(batch.name), f"{batch.images:,}", *(_cell(batch, quantity) for quantity in quantities))
    return table


def _tabulate_windows(windows: "Sequence[BatchDrift]") -> Table:
    """Tabulate the effect sizes with a column for each window: there are few, and many quantities."""
    from pipeline.monitoring.report import list_quantities

    columns = (Column(window.name, justify="right") for window in windows)
    table = Table(Column("", no_wrap=True), *columns, box=SIMPLE_HEAD, pad_edge=False)
    table.add_row("images", *(f"{window.images:,}" for window in windows))
    for quantity in list_quantities(windows):
        table.add_row(quantity, *(_cell(window, quantity) for window in windows))
    return table


def _cell(batch: "BatchDrift", quantity: str) -> Text:
    effects = [f"{one.effect:.2f}" for one in batch.comparisons if one.quantity == quantity]
    if quantity in batch.drifted:
        return Text(f"*{effects[0]}", "bold red")
    return Text("".join(effects))


def _describe(found: "Monitoring") -> dict[str, Any]:
    """Describe the comparison for programs, without the distributions, which the report draws."""
    return {
        "drifted": found.drifted,
        "asks_retraining": found.asks_retraining,
        "sentence": found.sentence,
        "evidence": dict(found.evidence),
        "batches": {
            batch.name: {
                "images": batch.images,
                "drifted": list(batch.drifted),
                "quantities": {
                    one.quantity: {"statistic": one.statistic, "effect": one.effect, "p_value": one.p_value}
                    for one in batch.comparisons
                },
            }
            for batch in found.batches
        },
        "unreadable": dict(found.unreadable),
    }

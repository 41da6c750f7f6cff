"""`pipeline review`: find and correct wrong labels."""

import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, console, enter_workspace, group, print_json
from pipeline.errors import DataError
from pipeline.git import git_or_none
from pipeline.workspace import lock

if TYPE_CHECKING:
    from pipeline.review.apply import Changes
    from pipeline.review.folds import Progress
    from pipeline.review.items import Item
    from pipeline.review.labels import Review
    from pipeline.review.verdicts import Outcome

SHOWN_PAIRS = 6  # of classes
DIFFERING = 3  # exit code if readers differ about an image
SHOWN_DIFFERENCES = 20

review = group("review", EVERY_DAY, 80)


@review.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Find wrong labels and duplicates, look at them, and correct them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@review.command()
def labels(
    name: Annotated[str, typer.Option(help="Name of the review: its directory in .pipeline/review/.")] = "labels",
    folds: Annotated[int, typer.Option(min=2, max=50, help="Number of models, each trained without one part.")] = 5,
    first: Annotated[int, typer.Option(min=1, help="Rows of each list to print.")] = 25,
    test: Annotated[bool, typer.Option("--test", help="Review the labels of the test images too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all rows.")] = False,
) -> None:
    """List images whose label is probably wrong, duplicates, and pairs of confused classes.

    Each image is predicted by a model of the current preset that was not trained on it. cleanlab then ranks the labels.
    If the command is interrupted, run it again: it continues with the next fold.

    Examples:

        pipeline review labels
        pipeline review labels --folds 3 --json
    """
    enter_workspace()
    from pipeline.review.labels import describe_review, find_wrong_labels

    with console.status("looking for duplicates") as status:

        def report(progress: "Progress") -> None:
            where = f"fold {progress.fold} of {progress.folds}"
            if progress.accuracy is None:
                status.update(f"training {where}: epoch {progress.epoch} of {progress.epochs}")
            elif not as_json:
                console.print(f"{where}: accuracy {progress.accuracy:.4f}")

        found = find_wrong_labels(name, folds, report, include_test=test)
    if as_json:
        print_json(describe_review(found) | {"run_id": found.run_id})
        return
    _print_review(found, first)


def _print_review(found: "Review", first: int) -> None:
    if found.duplicates:
        console.print(_tabulate_duplicates(found, first), f"{len(found.duplicates):,} pairs of duplicates")
    suspects = found.suspects
    console.print(_tabulate_suspects(found, first))
    console.print(
        f"{len(suspects):,} of {found.images:,} labels are suspect; out-of-fold accuracy {found.accuracy:.4f}"
    )
    if found.confused:
        shown = found.confused[:SHOWN_PAIRS]
        pairs = ", ".join(f"{pair.first} and {pair.second} ({pair.images:,})" for pair in shown)
        console.print(f"confused classes, with the number of images by estimate: {pairs}", soft_wrap=True)
    console.print(f"look at them:  pipeline review page --name {found.name}", soft_wrap=True)


def _tabulate_duplicates(found: "Review", first: int) -> Table:
    """Tabulate the first pairs of duplicates. The rows of a narrow terminal wrap."""
    columns = ("row", "split", "label", "row", "split", "label")
    table = Table(*columns, Column("difference", justify="right"), box=SIMPLE_HEAD, pad_edge=False)
    for pair in found.duplicates[:first]:
        cells = [
            cell
            for twin in (pair.first, pair.second)
            for cell in (_name(twin.official_row, twin.id), twin.split, twin.label)
        ]
        style = "yellow" if pair.first.label != pair.second.label else ""
        table.add_row(*map(Text, cells), Text(f"{pair.difference:.2f}" if pair.difference else "copy"), style=style)
    return table


def _tabulate_suspects(found: "Review", first: int) -> Table:
    """Tabulate the most suspect labels."""
    numbers = (Column(title, justify="right") for title in ("confidence", "score"))
    table = Table("row", "given", "suggested", *numbers, box=SIMPLE_HEAD, pad_edge=False)
    for item in found.suspects[:first]:
        row = _name(item.official_row, item.id) + (" (test)" if item.split == "test" else "")
        cells = (row, found.classes[item.given], found.classes[item.suggested], f"{item.confidence:.1%}")
        table.add_row(*map(Text, cells), f"{item.score:.6f}")
    return table


def _name(official_row: int | None, id_: str) -> str:
    return f"{id_[:12]}…" if official_row is None else str(official_row)


Name = Annotated[str | None, typer.Option(help="The review; by default the one with the newest list.")]
First = Annotated[int, typer.Option(min=1, metavar="IMAGES", help="How many images the page has of each of its lists.")]


@review.command("page")
def serve_page(
    name: Name = None,
    first: First = 1000,
    who: Annotated[str | None, typer.Option(help="Your name; by default git's user.name.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port; 0 for a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look at the listed images on a page in the browser. Ctrl-C ends it.

    Only this machine can open the page, and only with its secret address. Each verdict is saved at once: end the page
    at any time, and continue later. `pipeline review apply` turns the verdicts into corrections.

    Examples:

        pipeline review page
        pipeline review page --open --first 200
    """
    workspace = enter_workspace()
    from pipeline.review.page import compose_page, open_review
    from pipeline.review.page_server import PageServer, open_in_browser

    chosen = open_review(workspace, name)
    reader = _reader(who)
    with lock(f"review {chosen.name}", wait=0, remedy="use the page that is open, or end it with Ctrl-C"):
        with console.status("reading the pictures"):
            page = compose_page(workspace, chosen, first)
        with PageServer(page, reader, port) as server:
            console.print(f"page: {server.address}", soft_wrap=True)
            console.print(f"{len(page.items):,} images of {chosen.name}, for {reader}. Ctrl-C ends it.", soft_wrap=True)
            if open_:
                open_in_browser(server.address, chosen.verdicts.parent)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
    console.print(f"use the verdicts: pipeline review apply --name {shlex.quote(chosen.name)}", soft_wrap=True)


@review.command("export")
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE.html", help="The file to write.")],
    name: Name = None,
    first: First = 1000,
) -> None:
    """Write the page as one file, which another person can open without this project.

    The page keeps the verdicts in that person's browser and saves them to a file, which `pipeline review apply FILE`
    reads.

    Examples:

        pipeline review export labels.html
        pipeline review export labels.html --first 200
    """
    path = path.resolve()
    workspace = enter_workspace()
    from pipeline.review.page import compose_page, export_page, open_review

    chosen = open_review(workspace, name)
    with console.status("reading the pictures"):
        page = compose_page(workspace, chosen, first)
        export_page(page, path)
    size = path.stat().st_size / 2**20
    console.print(f"{len(page.items):,} images of {chosen.name} in {path} ({size:.1f} MB)", soft_wrap=True)
    again = f"pipeline review apply VERDICTS.json --name {shlex.quote(chosen.name)}"
    console.print(f"use the verdicts that come back: {again}", soft_wrap=True)


@review.command("show")
def show(
    name: Name = None,
    first: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all images of the list.")] = False,
) -> None:
    """Show the verdicts of a review, those about which readers differ first.

    Nothing is trained, and nothing is written.

    Examples:

        pipeline review show
        pipeline review show --name labels --json
    """
    workspace = enter_workspace()
    from pipeline.review.page import open_review
    from pipeline.review.verdicts import collect_outcomes, read_verdicts

    chosen = open_review(workspace, name)
    classes = chosen.dataset.classes
    outcomes = collect_outcomes(chosen.items, read_verdicts(chosen.verdicts, chosen.items))
    if as_json:
        found = {outcome.item.key: outcome for outcome in outcomes}
        print_json([_describe(item, found.get(item.key), classes) for item in chosen.items])
        return
    table = Table("row", "given", "suggested", "verdicts", box=SIMPLE_HEAD, pad_edge=False)
    for outcome in sorted(outcomes, key=lambda outcome: not outcome.differs)[:first]:
        verdicts = "; ".join(f"{each.who}: {each.describe(classes)}" for each in outcome.verdicts)
        row = _name(outcome.item.official_row, outcome.item.id) + (" (test)" if outcome.item.split == "test" else "")
        cells = (row, classes[outcome.item.given], classes[outcome.item.suggested], verdicts)
        table.add_row(*map(Text, cells), style="yellow" if outcome.differs else "")
    if outcomes:
        console.print(table)
    differing = sum(outcome.differs for outcome in outcomes)
    console.print(
        f"{len(outcomes):,} of {len(chosen.items):,} images have a verdict; readers differ about {differing:,}"
    )


def _describe(item: "Item", outcome: "Outcome | None", classes: tuple[str, ...]) -> dict[str, Any]:
    verdicts = outcome.verdicts if outcome else ()
    named = {"given": classes[item.given], "suggested": classes[item.suggested]}
    return asdict(item) | named | {"verdicts": {each.who: each.describe(classes) for each in verdicts}}


@review.command("apply")
def apply(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Verdicts that another reader saved to a file.")
    ] = None,
    name: Name = None,
    who: Annotated[str | None, typer.Option(help="That reader's name; by default the one in FILE.")] = None,
    prefer: Annotated[
        str | None, typer.Option(metavar="WHO", help="Use this person's verdict where readers differ.")
    ] = None,
    include_test: Annotated[bool, typer.Option("--include-test", help="Correct test images, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove many images of a class without a question.")] = False,
) -> None:
    """Write the verdicts of a review to `data/corrections.csv`; with FILE, those of another reader as well.

    Images about which two readers differ are shown and not corrected: exit code 3. Decide on the page, which shows them
    first, or use --prefer. To undo a correction, delete its line.

    Examples:

        pipeline review apply
        pipeline review apply ~/verdicts-labels-reader-2.json
        pipeline review apply --prefer reader-2
    """
    path = path.resolve() if path else None
    if who is not None and path is None:
        raise typer.BadParameter("it is the name of the reader of FILE: add FILE", param_hint="--who")
    workspace = enter_workspace()
    from pipeline.data.corrections import CORRECTIONS
    from pipeline.review.apply import find_large_removals, plan_changes, write_changes
    from pipeline.review.page import open_review
    from pipeline.review.verdicts import (
        append_verdicts,
        collect_outcomes,
        read_sent_verdicts,
        read_verdicts,
        select_changed,
    )

    chosen = open_review(workspace, name)
    kept, new = read_verdicts(chosen.verdicts, chosen.items), []
    if path:
        classes = len(chosen.dataset.classes)
        sent = read_sent_verdicts(path, chosen.name, chosen.dataset.name, chosen.items, classes, who)
        new = select_changed(kept, sent)
    outcomes = collect_outcomes(chosen.items, [*kept, *new])
    with lock("corrections", wait=10, remedy="run the command again"):
        changes = plan_changes(
            workspace, chosen.dataset, outcomes, review=chosen.name, prefer=prefer, include_test=include_test
        )
        for question in find_large_removals(changes):
            if not yes and not (sys.stdin.isatty() and typer.confirm(f"{question}. Continue?")):
                raise DataError(
                    f"not written: {question}", expected="a confirmation", remedy="run the command again with --yes"
                )
        append_verdicts(chosen.verdicts, new)
        write_changes(workspace, chosen.dataset, changes)
    _show_changes(changes, len(new) if path else None)
    if changes.written or changes.dropped:
        console.print(f"keep them: git commit -m 'Correct labels' {CORRECTIONS}", soft_wrap=True)
        console.print("use them:  pipeline run")
    if changes.differences:
        raise typer.Exit(DIFFERING)


def _show_changes(changes: "Changes", received: int | None) -> None:
    if received is not None:
        console.print(f"{received:,} new verdicts in the file")
    written = ", ".join(f"{count:,} {what}" for what, count in sorted(changes.written.items())) or "no new correction"
    console.print(written + (f", {changes.dropped:,} taken back" if changes.dropped else ""))
    if changes.skipped_test:
        console.print(f"{changes.skipped_test:,} test images are not corrected: add --include-test", soft_wrap=True)
    if changes.differences:
        table = Table("image", "given", "opinions", box=SIMPLE_HEAD)
        for difference in changes.differences[:SHOWN_DIFFERENCES]:
            opinions = "; ".join(f"{who}: {label}" for who, label in difference.opinions)
            table.add_row(*map(Text, (difference.image, difference.given, opinions)))
        console.print(table)
        more = len(changes.differences) - SHOWN_DIFFERENCES
        shown = f" ({more:,} more are not shown)" if more > 0 else ""
        console.print(f"{len(changes.differences):,} images are not corrected: readers differ{shown}", soft_wrap=True)
        console.print("decide:    pipeline review page, or: pipeline review apply --prefer WHO", soft_wrap=True)


def _reader(who: str | None) -> str:
    from pipeline.review.verdicts import require_name

    name = who if who is not None else git_or_none(Path(), "config", "--get", "user.name")
    return require_name(name or "", "add your name: --who NAME")

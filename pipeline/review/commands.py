"""`pipeline review`: find and correct wrong labels."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, console, enter_workspace, group, print_json

if TYPE_CHECKING:
    from pipeline.review.folds import Progress
    from pipeline.review.labels import Review

NAME_OPTION = typer.Option("--name", metavar="NAME", help="Name of the review: its directory in .pipeline/review/.")
SHOWN_PAIRS = 10  # of classes

review = group("review", EVERY_DAY, 80)


@review.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Find wrong labels and duplicates, look at them, and correct them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@review.command()
def labels(
    name: Annotated[str, NAME_OPTION] = "labels",
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
        table.add_row(*map(Text, cells), f"{item.score:.4f}")
    return table


def _name(official_row: int | None, id_: str) -> str:
    return f"{id_[:12]}…" if official_row is None else str(official_row)

"""`pipeline score`: predictions for any number of pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.cli.app import EVERY_DAY, command, console, enter_workspace, print_json


@command(EVERY_DAY, 65)
def score(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A folder, table, Parquet or file of arrays.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.parquet", help="Is replaced when the new one is complete.")],
    version: Annotated[
        str, typer.Option(metavar="VERSION|ALIAS", help="Model to use; NAME/VERSION for another registered model.")
    ] = "champion",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each processor.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of every class.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what a killed scoring has finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify any number of pictures, and write their predictions to a Parquet file.

    INPUT is a folder of pictures or of Parquet files, a table of paths (CSV, TSV, JSON lines, Parquet), Parquet with
    embedded pictures or pixels, or an `.npy`, `.npz` or idx file. Pictures are decoded and resized as for training.

    A picture that cannot be read gets a row with the reason in the column `error`. The scoring goes on.
    After a kill, run the same command again: it continues with what is missing.

    Examples:

        pipeline score photos/ predictions.parquet
        pipeline score pictures.csv predictions.parquet --version 3 --probabilities
    """
    paths = source.resolve(), output.resolve()
    workspace = enter_workspace()
    from pipeline.serving.scoring import Options, score

    options = Options(version=version, workers=workers, restart=restart, all_probabilities=probabilities)
    with _progress() as progress:
        seen = score(workspace, *paths, options, progress)
    if as_json:
        print_json(seen.describe() | {"output": str(output)})
        return
    model, rate = seen.model, seen.rows / seen.seconds
    console.print(f"{seen.rows:,} pictures by {model.name} version {model.version}, {rate:,.0f} a second: {output}")
    for identity, problem in seen.errors:
        console.print(f"{identity}: {problem}", style="yellow", markup=False, soft_wrap=True)
    if seen.failed:
        console.print(f"could not be read: {seen.failed:,} of {seen.rows:,}, see the column error", style="yellow")
    if seen.left_out:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in seen.left_out.items())
        console.print(f"left out: {kinds}", markup=False, soft_wrap=True)
    console.print(seen.describe_drift(), markup=False, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Show a progress bar with the rate and the remaining time, on a terminal only."""
    rate = TextColumn("{task.fields[rate]}")
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def start(total: int) -> Callable[[int], None]:
            task = bars.add_task("scoring", total=total, rate="")

            def advance(count: int) -> None:
                bars.advance(task, count)
                bars.update(task, rate=f"{bars.tasks[0].speed or 0:,.0f} pictures/s")

            return advance

        yield start

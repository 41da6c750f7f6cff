"""`pipeline data import`: make a dataset of your own pictures."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, console, enter_workspace, group
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.data.imports.survey import Survey

SHOWN = 20  # classes and names of files
data = group("data", EVERY_DAY, 5)


@data.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Import your own pictures as a dataset."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@data.command("import")
def import_data(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder, a table, or a file of arrays.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the dataset, and of its models.")],
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Height and width of the stored pictures, 8 to 512.")
    ] = None,
    color: Annotated[
        Literal["auto", "rgb", "grey"], typer.Option(help="auto: colour if any picture has colours.")
    ] = "auto",
    resize: Annotated[
        Literal["fit", "crop"], typer.Option(help="fit: pad with the pictures' background; crop: cut off the edges.")
    ] = "fit",
    test_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Share of each class for testing, if there is no test split.")
    ] = 0.15,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes in the order of their numbers, one a line."),
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Pictures with equal values stay in one split.")
    ] = None,
    class_level: Annotated[
        Literal["first", "last"] | None, typer.Option(help="The folder that names the class, of several levels.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="A mirrored picture keeps its class.")] = False,
    title: Annotated[str, typer.Option(help="Title for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the pictures.")] = "",
    source: Annotated[str, typer.Option(help="Where the pictures come from, such as a web page.")] = "",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out unreadable and contradictory pictures, and list them.")
    ] = False,
    keep_training: Annotated[
        bool, typer.Option("--keep-training", help="Do not set the suggested preset and epochs.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a dataset of this name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be imported, and write nothing.")] = False,
) -> None:
    """Import labelled pictures as a dataset, and select it for the next run.

    PATH is a folder of pictures for each class (also within train/ and test/), a table (CSV, TSV, JSON lines, Parquet)
    of paths and classes, Parquet with embedded pictures, an .npz file, pairs of .npy files, or pairs of idx files.
    Pictures are PNG, JPEG, WebP, BMP, TIFF or GIF, and get one size. The originals stay as they are.

    Without a test split, one is carved: a share of each class, chosen by a hash of the pictures. Near duplicates, and
    pictures of one group, stay on one side. Exact copies are left out. A validation split joins the training pictures.

    Writes data/own/NAME, which DVC tracks, and data/catalog/NAME.yaml, and sets dataset.name, dataset.path and the
    suggested keys of train in params.yaml. After a kill, run the same command again.

    Examples:

        pipeline data import ~/pictures/parts --name parts
        pipeline data import parts/labels.csv --name parts --group serial --size 64 --dry-run
        pipeline data import cifar10.npz --name cifar10 --classes names.txt --flip
    """
    path, classes = path.resolve(), classes.resolve() if classes else None
    enter_workspace()
    from pipeline.data.imports.run import import_survey, require_name, surveyed
    from pipeline.data.imports.survey import Options
    from pipeline.data.imports.write import About
    from pipeline.data.sources.recognise import Reading
    from pipeline.workspace import lock

    require_name(name)
    names, korean = _read_names(classes) if classes else (None, ())
    options = Options(
        Reading(names, group, class_level),
        size=size,
        color=color,
        resizing=resize,
        test_fraction=test_fraction,
        skip_bad=skip_bad,
    )
    with (
        lock("data import", wait=0, remedy="run this command again when it has ended"),
        _steps() as step,
        surveyed(path, name, options, step) as (found, scratch),
    ):
        _show(found)
        if dry_run:
            console.print("nothing was written: --dry-run")
            return
        about = About(name, title, licence, source, flip, korean)
        done = import_survey(found, scratch, about, step, replace=replace, set_training=not keep_training)
    verb = "suggested, not set" if keep_training else "set in params.yaml"
    changed = done.suggestion.train.items()
    chosen = ", ".join(f"train.{key}: {'null' if value is None else value}" for key, value in changed)
    console.print(f"training ({verb}): {chosen}. {done.suggestion.reason}", soft_wrap=True)
    files = " ".join(shlex.quote(str(file)) for file in done.changed)
    console.print(f"imported {name}. Next:", soft_wrap=True)
    console.print(f"  git add {files} && git commit -m {shlex.quote(f'Import {name}')}", soft_wrap=True)
    console.print("  pipeline run")


@contextmanager
def _steps() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Show a bar for each step, on a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def start(step: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(step, total=total)
            return lambda count: bars.advance(task, count)

        yield start


def _read_names(file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the names of the classes, and their Korean names, which follow them after a tab."""
    from pipeline.data.decoders import decoding

    with decoding(file, "a text file in UTF-8"):
        lines = [line.split("\t") for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    names = tuple(line[0].strip() for line in lines)
    korean = tuple(line[1].strip() for line in lines if line[1:])
    if len(names) < 2 or len(korean) not in (0, len(names)):
        raise DataError(
            f"{file} cannot be used for the names of the classes",
            expected="a name a line, at least two, and for all or none a Korean name after a tab",
            found=f"{len(names)} names, {len(korean)} Korean ones",
        )
    return names, korean


def _show(found: "Survey") -> None:
    """Print what was found, before anything is written."""
    from pipeline.data.imports.survey import describe

    facts = Table.grid(padding=(0, 2))
    for topic, text in describe(found).items():
        facts.add_row(Text(topic, "dim"), Text(text))
    console.print(facts)
    train, test = found.count(test=False), found.count(test=True)
    table = Table("class", Column("train", justify="right"), Column("test", justify="right"), box=SIMPLE_HEAD)
    for name, *counts in list(zip(found.pictures.classes, train, test, strict=True))[:SHOWN]:
        table.add_row(Text(name), *(f"{count:,}" for count in counts))
    if len(train) > SHOWN:
        ranges = (f"{side[SHOWN:].min():,} to {side[SHOWN:].max():,}" for side in (train, test))
        table.add_row(Text(f"and {len(train) - SHOWN} more", "dim"), *ranges)
    table.add_row(Text("all", "bold"), f"{train.sum():,}", f"{test.sum():,}")
    console.print(table)

"""The command `pipeline data import`: import labelled pictures as a dataset."""

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
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Size of the stored pictures in pixels, 8 to 512 a side. Default: chosen by the pictures' sizes.",
        ),
    ] = None,
    color: Annotated[
        Literal["auto", "rgb", "grey"], typer.Option(help="auto: rgb if any picture has colours, else grey.")
    ] = "auto",
    resize: Annotated[
        Literal["fit", "crop"],
        typer.Option(help="Pictures of another size. fit: pad with the background colour; crop: cut off the edges."),
    ] = "fit",
    test_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Share of each class in the test split, if PATH has no test split.")
    ] = 0.15,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Class names, one a line: the first is class 0."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="A column of the table. Pictures with the same value in it stay in one split."
        ),
    ] = None,
    class_level: Annotated[
        Literal["first", "last"] | None, typer.Option(help="If folders are nested: the level that names the class.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Allow mirrored training pictures: a mirrored picture keeps its class.")
    ] = False,
    title: Annotated[str, typer.Option(help="Title for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the pictures.")] = "",
    source: Annotated[str, typer.Option(help="Where the pictures come from, such as a web page.")] = "",
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help="Leave out unreadable pictures and equal pictures in different classes, and list them."
        ),
    ] = False,
    keep_training: Annotated[
        bool,
        typer.Option(
            "--keep-training", help="Print the suggested training settings, but do not set them in params.yaml."
        ),
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an imported dataset of this name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be imported, and write nothing.")] = False,
) -> None:
    """Import labelled pictures as a dataset, and select it for the next run.

    PATH is a folder of pictures for each class (also within train/ and test/), a table (CSV, TSV, JSON lines, Parquet)
    of paths and classes, Parquet with embedded pictures, an .npz file, pairs of .npy files, or pairs of idx files.
    Pictures are PNG, JPEG, WebP, BMP, TIFF or GIF. They are resized to one size. The originals are not changed.

    If PATH has no test split, the import chooses one: a share of each class, by a hash of the pictures. Near
    duplicates, and pictures of one group, stay in one split. Exact copies are left out. A validation split joins the
    training pictures.

    The command writes data/own/NAME, which DVC tracks, and data/catalog/NAME.yaml. In params.yaml, it sets
    dataset.name, dataset.path and the suggested keys of train. If it is interrupted, run the same command again.

    Examples:

        pipeline data import ~/pictures/parts --name parts
        pipeline data import parts/labels.csv --name parts --group serial --dry-run
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
            console.print("dry run: nothing was written")
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
    """Show a progress bar for each step, on a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def start(step: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(step, total=total)
            return lambda count: bars.advance(task, count)

        yield start


def _read_names(file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the names of the classes, and their Korean names, if these follow after a tab."""
    from pipeline.data.decoders import decoding

    with decoding(file, "a text file in UTF-8"):
        lines = [line.split("\t") for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    names = tuple(line[0].strip() for line in lines)
    korean = tuple(line[1].strip() for line in lines if line[1:])
    if len(names) < 2 or len(korean) not in (0, len(names)):
        raise DataError(
            f"cannot read the class names in {file}",
            expected="one name a line, at least two; a Korean name after a tab in every line or in none",
            found=f"{len(names)} names, {len(korean)} Korean names",
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

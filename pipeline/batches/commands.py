"""The command `pipeline add-data`: add a batch of labelled images."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, command, console, enter_workspace


@command(EVERY_DAY, 70)
def add_data(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder of pictures per class, a table with pictures, or arrays.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the batch; by default the name of PATH.")] = None,
    new_class: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Add a new class to the dataset; NAME=KOREAN if its classes have Korean names. Repeatable.",
        ),
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the images of the new classes, in all batches, that are test images; by default 0.15.",
        ),
    ] = None,
) -> None:
    """Add labelled images to the training data, as a batch in `data/incoming/`.

    PATH is a folder of pictures for each class, a folder with a table of pictures and classes, a Parquet file with
    embedded pictures, an .npz file, or a folder of .npy or idx files. docs/data.md describes each.

    The images are checked first. A bad batch is refused, and nothing is added. A batch consists of regular files: links
    in it are refused, and hidden files are skipped. PATH itself may be a link.

    Examples:

        pipeline add-data ~/photos-of-march
        pipeline add-data labelled.npz --name 2024-march.npz
        pipeline add-data ~/hats --new-class Hat=모자
    """
    path = path.resolve()
    if test_fraction is not None and not new_class:
        raise typer.BadParameter("it is for new classes only: add --new-class NAME", param_hint="--test-fraction")
    enter_workspace()
    from pipeline.batches.add import add_batch
    from pipeline.batches.new_classes import TEST_FRACTION, append_classes
    from pipeline.data.catalog import load_entry
    from pipeline.data.thresholds import resolve_thresholds
    from pipeline.git import SET_AUTHOR, lacks_author
    from pipeline.params import load_params

    params = load_params()
    share = TEST_FRACTION if test_fraction is None else test_fraction
    new = append_classes(params.dataset.name, new_class, share) if new_class else None
    entry = new.entry if new else load_entry(params.dataset.name)
    dataset, thresholds = entry.dataset, resolve_thresholds(params.validate, entry)
    with console.status(Text(f"checking {path.name}")):
        batch = add_batch(path, name, dataset, thresholds, new=new)
    counts = Table("class", "images", box=None)
    for class_name, images in batch.counts.items():
        counts.add_row(class_name, f"{images:,}")
    console.print(counts)
    if batch.left_out:
        console.print(Text(f"skipped hidden files: {', '.join(batch.left_out)}"))
    console.print(f"batch {batch.path.name}: {sum(batch.counts.values()):,} images in {batch.path}")
    if new:
        joined = f"{', '.join(new.names)} joins the classes in {new.file}"
        console.print(f"{joined}; {share:.0%} of the images are test images", soft_wrap=True)
    commit = ["git", "commit", "-m", f"Add batch {batch.path.name}", *map(str, batch.changed)]
    if lacks_author(Path()):
        console.print(f"first:    {SET_AUTHOR}", soft_wrap=True)
    console.print(f"keep it:  {shlex.join(commit)}", soft_wrap=True)
    console.print("use it:   pipeline run")

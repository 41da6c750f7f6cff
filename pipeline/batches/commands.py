"""`pipeline add-data`: new labelled images."""

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
        Path, typer.Argument(help="A folder of idx files, a folder of pictures by class, or an .npz file.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the batch; by default the name of PATH.")] = None,
    new_class: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Add a class that the batch brings; NAME=KOREAN if classes have Korean names. Repeat it for more.",
        ),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Share of the images of new classes, in all batches, that join the test images.")
    ] = 0.15,
) -> None:
    """Add labelled images to the training data, as a batch in `data/incoming/`.

    They are checked first; a bad batch is refused and leaves nothing behind. A batch consists of regular files: links
    in it are refused, and hidden files are skipped. PATH itself may be a link.

    Examples:

        pipeline add-data ~/photos-of-march
        pipeline add-data labelled.npz --name 2024-march.npz
        pipeline add-data ~/hats --new-class Hat=모자
    """
    path = path.resolve()
    enter_workspace()
    from pipeline.batches.add import add_batch
    from pipeline.batches.new_classes import append_classes
    from pipeline.data.catalog import load_entry
    from pipeline.data.thresholds import resolve_thresholds
    from pipeline.git import SET_AUTHOR, lacks_author
    from pipeline.params import load_params

    params = load_params()
    new = append_classes(params.dataset.name, new_class, test_fraction) if new_class else None
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
        console.print(f"{joined}; {test_fraction:.0%} of the images are test images", soft_wrap=True)
    commit = ["git", "commit", "-m", f"Add batch {batch.path.name}", *map(str, batch.changed)]
    if lacks_author(Path()):
        console.print(f"first:    {SET_AUTHOR}", soft_wrap=True)
    console.print(f"keep it:  {shlex.join(commit)}", soft_wrap=True)
    console.print("use it:   pipeline run")

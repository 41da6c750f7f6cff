"""The command `pipeline add-data`: add a batch of labelled images."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, command, console, enter_workspace
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.batches.add import AddedBatch
    from pipeline.data.table import Dataset
    from pipeline.params import ValidateParams

LOCK_SECONDS = 60


@command(EVERY_DAY, 70)
def add_data(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="A folder of pictures per class, a table with pictures, or arrays."),
    ] = None,
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
    from_traffic: Annotated[
        bool,
        typer.Option("--from-traffic", help="Instead of PATH: images that a server answered, with labels given later."),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --from-traffic: more labels, a CSV file: request_id, index, label."),
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
        pipeline add-data --from-traffic --labels outcomes.csv
    """
    if (path is None) != from_traffic:
        raise typer.BadParameter("give PATH, or --from-traffic instead of it", param_hint="PATH")
    if labels and not from_traffic:
        raise typer.BadParameter("it is for --from-traffic only", param_hint="--labels")
    if new_class and from_traffic:
        raise typer.BadParameter("the traffic has images of known classes only", param_hint="--new-class")
    if test_fraction is not None and not new_class:
        raise typer.BadParameter("it is for new classes only: add --new-class NAME", param_hint="--test-fraction")
    path, labels = (each.resolve() if each else None for each in (path, labels))
    workspace = enter_workspace()
    from pipeline.batches.add import add_batch
    from pipeline.batches.new_classes import TEST_FRACTION, append_classes
    from pipeline.data.catalog import load_entry
    from pipeline.data.thresholds import resolve_thresholds
    from pipeline.git import SET_AUTHOR, lacks_author
    from pipeline.params import load_params
    from pipeline.workspace import lock, main_repository

    params = load_params()
    share = TEST_FRACTION if test_fraction is None else test_fraction
    new = append_classes(params.dataset.name, new_class, share) if new_class else None
    entry = new.entry if new else load_entry(params.dataset.name)
    dataset, thresholds = entry.dataset, resolve_thresholds(params.validate, entry)
    if path is None:
        root = main_repository(workspace)
        with lock("traffic batches", wait=LOCK_SECONDS, remedy="run the same command again", root=root):
            batch = _add_from_traffic(root, name, labels, dataset, thresholds)
        if batch is None:
            return
    else:
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


def _add_from_traffic(
    root: Path, name: str | None, file: Path | None, dataset: "Dataset", thresholds: "ValidateParams"
) -> "AddedBatch | None":
    """Add the labelled images of the traffic as a batch. Returns None if no label has a new image.

    Two at the same time would add the same images.

    Args:
        root: the main repository.
    """
    from datetime import UTC, datetime
    from tempfile import TemporaryDirectory

    from pipeline.batches import from_traffic
    from pipeline.batches.add import TABLES, add_batch
    from pipeline.batches.inspection import read_known
    from pipeline.data.traffic import FEEDBACK, read_labels

    new = from_traffic.read_label_file(file, dataset, f"file {file.name}") if file else []
    stored = read_labels(root / FEEDBACK)
    merged = from_traffic.merge(stored, new)
    if not merged:
        raise DataError(
            "the traffic has no labels yet",
            expected="labels sent to /v1/feedback, or a file",
            remedy="pipeline add-data --from-traffic --labels FILE.csv",
        )
    known = read_known(TABLES, dataset)
    labelled = from_traffic.collect(root, dataset, known, merged)
    for reason, count in labelled.left_out.items():
        console.print(f"left out: {count:,} labels of images {reason}")
    if not labelled.keys:
        from_traffic.record(root, "", labelled, new)
        stored_now = f"; {len(new):,} labels of {file.name} are stored for pipeline monitor --traffic" if file else ""
        console.print(f"no batch: no label has a new image{stored_now}", soft_wrap=True)
        return None
    with TemporaryDirectory() as scratch:
        title = name or f"traffic-{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
        source = Path(scratch) / f"{title.removesuffix('.npz')}.npz"
        from_traffic.write_batch(source, labelled)
        with console.status(Text(f"checking {source.name}")):
            batch = add_batch(source, None, dataset, thresholds, known)
    from_traffic.record(root, batch.path.name, labelled, new)
    return batch

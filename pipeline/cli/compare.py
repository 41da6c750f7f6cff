"""`pipeline compare`: two versions of a registered model on the same test images, or on logged traffic."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from pipeline.cli.app import REGISTRY, command, console, enter_workspace, print_json
from pipeline.cli.registry import MODEL_OPTION
from pipeline.rooms import find_remedy

if TYPE_CHECKING:
    from pipeline.evaluation.predictions import Predictions
    from pipeline.registry.version_traffic import TrafficComparison

SHOWN_IMAGES = 24
SHOWN_DIFFERENCES = 20
SHOWN_CLASSES = 20  # in the table; the JSON has them all


@command(REGISTRY, 20)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A version or an alias, such as champion.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The version or alias to compare it with.")],
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw images with different answers, as a PNG.")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Load both models and measure their latency on this machine.")] = False,
    traffic: Annotated[
        bool, typer.Option("--traffic", help="Compare on the images in the traffic log of a server.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, help="With --traffic: the last days of the log.")] = 7,
) -> None:
    """Compare two versions of a model, image by image.

    Nothing is changed or decided.

    Examples:

        pipeline compare champion challenger
        pipeline compare 3 4 --figure differences.png
        pipeline compare 3 4 --latency --json
        pipeline compare champion challenger --traffic --days 30
    """
    if traffic and (figure or latency):
        raise typer.BadParameter("--traffic cannot be combined with --figure or --latency")
    figure = figure.resolve() if figure else None
    workspace = enter_workspace()
    from pipeline.evaluation import comparison
    from pipeline.registry.registration import current_name, find_version, open_registry
    from pipeline.registry.version_predictions import measure_latencies, predictions_of_both
    from pipeline.registry.version_traffic import compare_on_traffic
    from pipeline.tracking.stage_outputs import Outputs
    from pipeline.tracking.store import explained
    from pipeline.workspace import main_repository

    outputs = Outputs(workspace)
    name = model or current_name(workspace)
    store, client = open_registry(workspace)
    with explained(store):
        versions = (find_version(client, name, a), find_version(client, name, b))
        if traffic:
            now = datetime.now(UTC)
            on_traffic = compare_on_traffic(
                store, client, versions, main_repository(workspace), now - timedelta(days=days), now
            )
            show_traffic(name, [str(version.version) for version in versions], on_traffic, as_json=as_json)
            return
        test, first, second = predictions_of_both(store, client, versions, outputs)
        latencies = measure_latencies(store, client, versions, outputs) if latency else []
    numbers = [str(version.version) for version in versions]
    found = comparison.compare(first, second)
    if figure:
        draw_differences(figure, outputs.split("test"), test, numbers, first, second)
    if as_json:
        about = {"name": name, "versions": numbers, "test": test}
        measured = {"latency_ms": [asdict(one) for one in latencies]} if latencies else {}
        print_json(about | comparison.describe_comparison(found) | measured)
        return
    show(name, numbers, comparison.describe_comparison(found))
    for number, one in zip(numbers, latencies, strict=False):
        console.print(f"version {number}: {one.one:.2f} ms for an image alone, {one.batch:.3f} ms each in a batch")
    if figure:
        console.print(f"images on which they differ: {figure}", soft_wrap=True)


def show(name: str, numbers: Sequence[str], found: dict[str, Any]) -> None:
    """Print a comparison: by class, then how many images both, either or neither classified correctly."""
    from pipeline.evaluation.champion_rule import in_points

    first, second = (f"version {number}" for number in numbers)
    console.print(f"{name} on the same {found['images']:,} test images")
    table = Table(
        "class", *(Column(title, justify="right") for title in ("images", first, second, "points", "95% interval")),
        box=SIMPLE_HEAD,
    )  # fmt: skip
    by_class = sorted(found["by_class"].items(), key=lambda named: -abs(named[1]["difference"]))
    if len(by_class) <= SHOWN_CLASSES:
        by_class = list(found["by_class"].items())
    else:
        console.print(f"the {SHOWN_CLASSES} of {len(by_class):,} classes with the largest differences")
    for title, pairs in [*by_class[:SHOWN_CLASSES], ("all classes", found)]:
        interval = f"{in_points(pairs['difference_low'])} to {in_points(pairs['difference_high'])}"
        shares = (f"{pairs[f'{role}_right']:.2%}" for role in ("champion", "challenger"))
        table.add_row(title, f"{pairs['images']:,}", *shares, in_points(pairs["difference"]), interval)
    console.print(table)
    console.print(
        f"both right {found['both_right']:,}, both wrong {found['both_wrong']:,}; only {first} right "
        f"{found['lost']:,}, only {second} right {found['gained']:,}: p = {found['p_value']:.2g} (McNemar, mid-p)"
    )
    console.print(f"calibration error {found['champion_ece']:.4f} and {found['challenger_ece']:.4f}")


def show_traffic(name: str, numbers: Sequence[str], found: "TrafficComparison", *, as_json: bool) -> None:
    """Print a comparison on traffic: the most frequent differences, and who was right where the class was told."""
    from pipeline.registry.version_traffic import describe_traffic

    if as_json:
        print_json({"name": name, "versions": list(numbers), **describe_traffic(found)})
        return
    first, second = (f"version {number}" for number in numbers)
    console.print(f"{name}: {found.images:,} of {found.logged:,} images in the traffic log have an answer of both")
    console.print(
        f"different answers: {found.differing:,} ({found.differing / found.images:.2%}); mean confidence "
        f"{found.confidences[0]:.3f} and {found.confidences[1]:.3f}"
    )
    table = Table(first, second, Column("images", justify="right"), box=SIMPLE_HEAD)
    for one, other, images in found.list_differences()[:SHOWN_DIFFERENCES]:
        table.add_row(one, other, f"{images:,}")
    if table.rows:
        console.print(table)
    if pairs := found.labelled:
        console.print(
            f"of {pairs.images:,} images whose class was told later: both right {pairs.both_right:,}, both wrong "
            f"{pairs.both_wrong:,}; only {first} right {pairs.lost:,}, only {second} right {pairs.gained:,}: "
            f"p = {pairs.p_value:.2g} (McNemar, mid-p)"
        )


def draw_differences(
    path: Path, split: Path, test: str, numbers: Sequence[str], first: "Predictions", second: "Predictions"
) -> None:
    """Draw the images that two models classify differently, the most confident answers first.

    Raises:
        DataError: the workspace does not have the test images on which the versions were judged.
    """
    import numpy as np

    from pipeline.data import table
    from pipeline.errors import DataError
    from pipeline.evaluation.comparison import align
    from pipeline.evaluation.figures import draw_images
    from pipeline.files import atomic_file, file_digest

    if file_digest(split, "md5") != test:
        raise DataError(
            f"{split} does not hold the images that these versions were judged on",
            expected=f"the split with MD5 {test}",
            remedy=f"{find_remedy('find a commit', 'git checkout COMMIT')} && dvc checkout {shlex.quote(str(split))}",
        )
    first, second = align(first, second)
    differing = np.flatnonzero(first.predicted != second.predicted)
    surest = differing[np.argsort(-(first.confidences + second.confidences)[differing], kind="stable")][:SHOWN_IMAGES]
    images, _ = table.read_images(split)
    position = {identity: row for row, identity in enumerate(table.read_ids(split))}
    captions = [
        "\n".join(
            [
                first.classes[first.labels[row]],
                *(
                    f"{number}: {model.classes[model.predicted[row]]} {model.confidences[row]:.2f}"
                    for number, model in zip(numbers, (first, second), strict=True)
                ),
            ]
        )
        for row in surest
    ]
    title = f"{len(differing):,} images on which versions {numbers[0]} and {numbers[1]} differ; most confident first"
    with atomic_file(path) as partial:
        draw_images(partial, title, [images[position[second.ids[row]]] for row in surest], captions)

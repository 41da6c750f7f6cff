"""The commands of everyday work: run, look, add data, repair."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import app, console, enter_workspace, print_json
from pipeline.workspace import main_repository

# What a command needs is imported inside it: `pipeline --help` answers at once.

FORCE_ALL = "all"
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


class OptionalValue(typer.core.TyperCommand):
    """A command whose `--force` may stand alone; Typer has no word for an option with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, argument in enumerate(args):
            following = args[place + 1 : place + 2]
            if argument == "--force" and (not following or following[0].startswith("-")):
                args[place] = f"--force={FORCE_ALL}"
        return super().parse_args(ctx, args)


@app.command(cls=OptionalValue)
def run(
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[
        str | None,
        typer.Option(metavar="[STAGE]", help="Run this stage, or without a name all, even if nothing changed."),
    ] = None,
    if_busy: Annotated[
        Literal["leave", "wait"], typer.Option(help="What to do while another run is going on in this checkout.")
    ] = "leave",
) -> None:
    """Bring everything up to date: ingest, validate, split, train, evaluate, register.

    Only what changed is run; what was made before comes from DVC's cache.
    A model that misses a threshold is rejected, and the run still succeeds.

    Examples:

        pipeline run
        pipeline run --until validate
        pipeline run --force train
    """
    workspace = enter_workspace()
    from pipeline.flows.run import run_training

    try:
        run_training(workspace, until=until, force=force, if_busy=if_busy)
    except KeyboardInterrupt:
        console.print("stopped: nothing is left running, and what was finished is kept")
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def status() -> None:
    """Say what a run would do and why, and how the current model stands.

    Example:

        pipeline status
    """
    workspace = enter_workspace()
    from pipeline.batches.quarantine import find_quarantined, read_digests
    from pipeline.data.batches import INCOMING
    from pipeline.flows.plan import read_plan
    from pipeline.flows.summary import describe_refused_batches, describe_standing
    from pipeline.flows.terminal import as_grid
    from pipeline.stages.entrypoint import read_params

    read_params()
    with console.status("asking DVC and MLflow"):
        plan = read_plan(workspace)
        standing = list(describe_standing(workspace))
    root = main_repository(workspace)
    digests, unreadable = read_digests(root, workspace / INCOMING)
    standing += [("quarantined", f"{batch.name}: {batch.reason}") for batch in find_quarantined(root, digests)]
    standing += [("unreadable", f"{name}: {reason}") for name, reason in sorted(unreadable.items())]
    standing += describe_refused_batches()
    pending = plan.pending()
    table = Table("stage", "a run would", "because", box=SIMPLE_HEAD)
    for stage in plan.stages:
        would = "run or restore it" if stage.changes else "run it if need be" if stage in pending else "skip it"
        because = "; ".join(stage.changes) or (f"{', '.join(stage.upstream)} may change" if stage in pending else "")
        table.add_row(stage.name, Text(would, "yellow" if stage in pending else "dim"), Text(because))
    console.print(table, as_grid(standing))


@app.command()
def schema() -> None:
    """Print the JSON Schema of `params.yaml`: every key, what it means and what it may be.

    Example:

        pipeline schema > params.schema.json
    """
    from pipeline.params import params_schema

    print_json(params_schema())


@app.command()
def params() -> None:
    """Print the parameters as the stages see them, with the preset's values in place.

    Example:

        pipeline params
    """
    enter_workspace()
    from pipeline.stages.entrypoint import read_params

    resolved: Any = read_params()
    print_json(dataclasses.asdict(resolved))


@app.command()
def add_data(
    path: Annotated[Path, typer.Argument(help="Idx pairs, a folder of pictures by class, or an .npz file.")],
    name: Annotated[str | None, typer.Option(help="Name of the batch; by default the path's.")] = None,
) -> None:
    """Add labelled images to the training data, as a batch in `data/incoming/`.

    They are checked first; a bad batch is refused and leaves nothing behind. A batch is regular files: links in it are
    refused, and hidden files are left out. PATH itself may be a link.

    Examples:

        pipeline add-data ~/photos-of-march
        pipeline add-data labelled.npz --name 2024-march.npz
    """
    path = path.resolve()
    enter_workspace()
    from pipeline.batches.add import add_batch
    from pipeline.data.catalog import load_entry
    from pipeline.git import SET_AUTHOR, lacks_author
    from pipeline.params import load_params

    params = load_params()
    dataset = load_entry(params.dataset.name).dataset
    with console.status(Text(f"checking {path.name}")):
        batch = add_batch(path, name, dataset, params.validate)
    counts = Table("class", "images", box=None)
    for class_name, images in batch.counts.items():
        counts.add_row(class_name, f"{images:,}")
    console.print(counts)
    if batch.left_out:
        console.print(Text(f"left out, because hidden: {', '.join(batch.left_out)}"))
    console.print(f"batch {batch.path.name}: {sum(batch.counts.values()):,} images in {batch.path}")
    commit = ["git", "commit", "-m", f"Add batch {batch.path.name}", *map(str, batch.changed)]
    if lacks_author(Path()):
        console.print(f"first:    {SET_AUTHOR}", soft_wrap=True)
    console.print(f"keep it:  {shlex.join(commit)}", soft_wrap=True)
    console.print("use it:   pipeline run")


@app.command()
def sync() -> None:
    """Rebuild what MLflow lacks of the current model: its run, its evaluation, its version. No stage is run.

    Every run ends with this; it is of use after a plain `dvc repro`, a `dvc pull` or the loss of the store.

    Example:

        pipeline sync
    """
    workspace = enter_workspace()
    from pipeline.flows.summary import describe_version
    from pipeline.registry.sync import sync as sync_store
    from pipeline.tracking.store import locate

    with console.status("comparing the workspace with MLflow"):
        synced = sync_store(workspace)
    if synced.run is None:
        console.print("there is no model that DVC knows: pipeline run")
        return
    restored = " (rebuilt from the stages' outputs)" if synced.restored else ""
    console.print(f"{locate(workspace)} has the model's run {synced.run}{restored}", soft_wrap=True)
    if synced.registration:
        console.print(f"registry: {describe_version(synced.registration)}")


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port of this machine.")] = 5000) -> None:
    """Show MLflow's pages: runs, charts, the registry. Ctrl-C ends it.

    Examples:

        pipeline ui
        pipeline ui --port 5001
    """
    workspace = enter_workspace()
    from pipeline.tracking.store import locate

    store = locate(workspace)
    if store.is_server:
        console.print(f"MLflow is at {store}")
        return
    console.print(f"MLflow's pages: http://127.0.0.1:{port} (in some seconds; Ctrl-C ends them)")
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.servers.mlflow_server", "127.0.0.1", str(port)])

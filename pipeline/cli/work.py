"""Commands for everyday work: run, status, add data, repair."""

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

# Each command imports its dependencies inside its function, which keeps `pipeline --help` fast.

FORCE_ALL = "all"
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


class OptionalValue(typer.core.TyperCommand):
    """A command whose `--force` has an optional value, which Typer does not support."""

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
        typer.Option(metavar="[STAGE]", help="Run this stage even if nothing changed; without a name, run all stages."),
    ] = None,
    if_busy: Annotated[
        Literal["leave", "wait"], typer.Option(help="What to do while another run is active in this checkout.")
    ] = "leave",
) -> None:
    """Run the pipeline: ingest, validate, split, train, evaluate, register.

    Only changed stages run; outputs that were made before come from DVC's cache.
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
    """Show what a run would do and why, and the state of the current model.

    Example:

        pipeline status
    """
    workspace = enter_workspace()
    from pipeline.batches.incoming import read_digests
    from pipeline.batches.quarantine import find_quarantined
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
    """Print the JSON Schema of `params.yaml`: the meaning and the allowed values of every key.

    Example:

        pipeline schema > params.schema.json
    """
    from pipeline.params import params_schema

    print_json(params_schema())


@app.command()
def params() -> None:
    """Print the parameters as the stages read them, with the preset's values filled in.

    Example:

        pipeline params
    """
    enter_workspace()
    from pipeline.stages.entrypoint import read_params

    resolved: Any = read_params()
    print_json(dataclasses.asdict(resolved))


@app.command()
def add_data(
    path: Annotated[
        Path, typer.Argument(help="A folder of idx files, a folder of pictures by class, or an .npz file.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the batch; by default the name of PATH.")] = None,
) -> None:
    """Add labelled images to the training data, as a batch in `data/incoming/`.

    They are checked first; a bad batch is refused and leaves nothing behind. A batch consists of regular files: links
    in it are refused, and hidden files are skipped. PATH itself may be a link.

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
    """Rebuild missing MLflow records of the current model: its run, evaluation and version. No stage runs.

    Every run ends with this. Use it after a plain `dvc repro`, a `dvc pull` or the loss of the store.

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
def ui(port: Annotated[int, typer.Option(help="Local port.")] = 5000) -> None:
    """Serve MLflow's pages: runs, charts, the registry. Ctrl-C stops it.

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

"""The `pipeline` command: a thin layer over the flows, the data and the tracking."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from pipeline.errors import PipelineError
from pipeline.workspace import find_workspace

# What a command needs is imported inside it: `pipeline --help` answers at once.

app = typer.Typer(
    name="pipeline",
    help="Data in, a judged and registered image classifier out: DVC, Prefect, MLflow and Great Expectations.",
    epilog="A first look, without a download: dataset.name: tiny in params.yaml, then pipeline run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console()
FORCE_ALL = "all"
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def main() -> None:
    """Run the command line. What the reader can mend is printed without a traceback."""
    try:
        app()
    except PipelineError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


class OptionalValue(typer.core.TyperCommand):
    """A command whose `--force` may stand alone; Typer has no word for an option with an optional value."""

    def parse_args(self, context: typer.Context, arguments: list[str]) -> list[str]:
        for place, argument in enumerate(arguments):
            following = arguments[place + 1 : place + 2]
            if argument == "--force" and (not following or following[0].startswith("-")):
                arguments[place] = f"--force={FORCE_ALL}"
        return super().parse_args(context, arguments)


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
    from pipeline.flows.plan import read_plan
    from pipeline.params import load_params

    load_params()
    plan = read_plan(workspace)


@app.command()
def schema() -> None:
    """Print the JSON Schema of `params.yaml`: every key, what it means and what it may be.

    Example:

        pipeline schema > params.schema.json
    """
    from pipeline.params import params_schema

    console.print_json(data=params_schema())


@app.command()
def params() -> None:
    """Print the parameters as the stages see them, with the preset's values in place.

    Example:

        pipeline params
    """
    enter_workspace()
    from pipeline.params import load_params

    console.print_json(data=dataclasses.asdict(load_params()))


@app.command()
def add_data(
    path: Annotated[Path, typer.Argument(help="Idx pairs, a folder of pictures by class, or an .npz file.")],
    name: Annotated[str | None, typer.Option(help="Name of the batch; by default the path's.")] = None,
) -> None:
    """Add labelled images to the training data, as a batch in `data/incoming/`.

    They are checked first; a bad batch is refused and leaves nothing behind.

    Examples:

        pipeline add-data ~/photos-of-march
        pipeline add-data labelled.npz --name 2024-march.npz
    """
    path = path.absolute()
    enter_workspace()
    from pipeline.data.catalog import load_entry
    from pipeline.flows.batches import add_batch
    from pipeline.params import load_params

    batch = add_batch(path, name, load_entry(load_params().dataset.name).dataset)
    counts = Table("class", "images", box=None)
    for class_name, images in batch.counts.items():
        counts.add_row(class_name, f"{images:,}")
    console.print(counts)
    console.print(f"batch {batch.path.name}: {sum(batch.counts.values()):,} images in {batch.path}")
    console.print(f'keep it:  git commit -m "Add batch {batch.path.name}" {" ".join(map(str, batch.changed))}', soft_wrap=True)
    console.print("use it:   pipeline run")


def enter_workspace() -> Path:
    """Change into the root of the checkout that the current directory belongs to."""
    workspace = find_workspace()
    os.chdir(workspace)
    return workspace


if __name__ == "__main__":
    main()

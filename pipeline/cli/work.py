"""Commands for everyday work: run, status, params, repair."""

import dataclasses
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, REGISTRY, PlainCommand, command, console, enter_workspace, print_json
from pipeline.rooms import find_rooms

# Each command imports its dependencies inside its function, which keeps `pipeline --help` fast.

FORCE_ALL = "all"
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


class OptionalValue(PlainCommand):
    """A command whose `--force` has an optional value, which Typer does not support."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, argument in enumerate(args):
            following = args[place + 1 : place + 2]
            if argument == "--force" and (not following or following[0].startswith("-")):
                args[place] = f"--force={FORCE_ALL}"
        return super().parse_args(ctx, args)


@command(EVERY_DAY, 10, cls=OptionalValue)
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


@command(EVERY_DAY, 20)
def status() -> None:
    """Show what a run would do and why, and the state of the current model.

    Example:

        pipeline status
    """
    workspace = enter_workspace()
    from pipeline.flows.dvc_process import read_plan
    from pipeline.flows.summary import describe_refused_batches, describe_state
    from pipeline.flows.terminal import create_grid
    from pipeline.stages.entrypoint import read_params

    read_params()
    with console.status("asking DVC and MLflow"):
        plan = read_plan(workspace)
        facts = list(describe_state(workspace))
    for room in find_rooms().values():
        facts += resolve_name(room.status)(workspace) if room.status else ()
    facts += describe_refused_batches()
    pending = plan.pending()
    table = Table("stage", "a run would", "because", box=SIMPLE_HEAD)
    for stage in plan.stages:
        would = "run or restore it" if stage.changes else "run it if need be" if stage.name in pending else "skip it"
        because = "; ".join(stage.changes) or (
            f"{', '.join(stage.upstream)} may change" if stage.name in pending else ""
        )
        table.add_row(stage.name, Text(would, "yellow" if stage.name in pending else "dim"), Text(because))
    console.print(table, create_grid(facts))


@command(EVERY_DAY, 40)
def schema() -> None:
    """Print the JSON Schema of `params.yaml`: the meaning and the allowed values of every key.

    Example:

        pipeline schema > params.schema.json
    """
    from pipeline.params import params_schema

    print_json(params_schema())


@command(EVERY_DAY, 30)
def params() -> None:
    """Print the parameters as the stages read them, with the preset's values filled in.

    Example:

        pipeline params
    """
    enter_workspace()
    from pipeline.stages.entrypoint import read_params

    resolved: Any = read_params()
    print_json(dataclasses.asdict(resolved))


@command(REGISTRY, 90)
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
        console.print("the workspace has no model that is in dvc.lock: pipeline run")
        return
    restored = " (rebuilt from the stages' outputs)" if synced.restored else ""
    console.print(f"{locate(workspace)} has the model's run {synced.run}{restored}", soft_wrap=True)
    if synced.registration:
        console.print(f"registry: {describe_version(synced.registration)}")

"""`pipeline sweep`: search for training parameters, and show, list and apply sweeps."""

import time
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.cli.app import EVERY_DAY, console, enter_workspace, group, print_json
from pipeline.errors import FlowError

INTERRUPTED = 130
sweep = group("sweep", EVERY_DAY, 15)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The sweep.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@sweep.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start the sweep NAME, or continue it. Finished trials are kept.")
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Work on the sweep NAME too, from another checkout or another machine."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials in all, 20 by default; more continue a finished sweep.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that train at the same time; they share the cores.")
    ] = 1,
    minutes: Annotated[float | None, typer.Option(min=0, help="Start no trial after so many minutes.")] = None,
    preset: Annotated[str | None, typer.Option(help="Search around this preset instead of train.preset.")] = None,
    confirm: Annotated[
        int | None,
        typer.Option(min=1, help="Then train the best trials again, with so many other seeds each."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search for better values of keys of `train`, by accuracy on the validation split.

    The section `sweep` of params.yaml has the space. The workspace's outputs, the registry and the test split are not
    touched.

    Examples:

        pipeline sweep --name first --trials 40 --workers 2
        pipeline sweep --name wide --preset cnn --minutes 60
        pipeline sweep --name first --confirm 3
        pipeline sweep --join first
        pipeline sweep list
        pipeline sweep show first --json
        pipeline sweep best first
        pipeline sweep apply first
    """
    if context.invoked_subcommand is not None:
        return
    if (name is None) == (join is None):
        raise typer.BadParameter("expected --name NAME or --join NAME, or one of the commands list, show, best, apply")
    if join is not None and (trials or preset or confirm):
        raise typer.BadParameter("--join takes --workers, --minutes and --json only: the sweep has the other settings")
    enter_workspace()
    from pipeline.search import run
    from pipeline.search.progress import describe_result

    until = float("inf") if minutes is None else time.time() + 60 * minutes
    try:
        study, definition = run.create(name, trials, preset) if name else run.join(str(join))
        summary = run.search(study, definition, run.Workers(workers, until), confirm, console, quiet=as_json)
    except KeyboardInterrupt:
        console.print(f"stopped; to continue: pipeline sweep {'--name' if name else '--join'} {name or join}")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(summary.describe())
    else:
        console.print("\n".join(describe_result(summary)), markup=False, highlight=False, soft_wrap=True)
        if confirm and not summary.confirmations:
            console.print("not confirmed: trials are left", style="yellow")
        if summary.best:
            console.print(f"to use it: pipeline sweep apply {summary.name}", soft_wrap=True)
    if summary.best is None and summary.count("failed"):
        raise FlowError("every trial failed", remedy=f"pipeline sweep show {summary.name}")


@sweep.command("list")
def list_sweeps(as_json: AsJson = False) -> None:
    """List the sweeps.

    Example:

        pipeline sweep list
    """
    enter_workspace()
    from pipeline.search.run import read_summary
    from pipeline.search.store import list_studies

    summaries = [read_summary(name) for name in list_studies()]
    if as_json:
        print_json([{key: value for key, value in one.describe().items() if key != "trials"} for one in summaries])
        return
    table = Table("sweep", "trials", "running", "best", "CPU s", box=SIMPLE_HEAD, pad_edge=False)
    for one in summaries:
        finished = sum(one.count(state) for state in ("complete", "pruned", "failed"))
        accuracy = one.best.validation_accuracy if one.best else None
        best = f"trial {one.best.number}: {accuracy:.4f}" if one.best and accuracy is not None else ""
        running, cpu_seconds = str(one.count("running")), f"{one.cpu_seconds:.0f}"
        table.add_row(one.name, f"{finished} of {one.planned}", running, best, cpu_seconds)
    console.print(table if summaries else "no sweeps yet: pipeline sweep --name NAME --trials 20")


@sweep.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show the trials of a sweep and its result so far.

    Example:

        pipeline sweep show first --json
    """
    enter_workspace()
    from pipeline.search.progress import describe_result, tabulate
    from pipeline.search.run import read_summary

    summary = read_summary(name)
    if as_json:
        print_json(summary.describe())
        return
    console.print(tabulate((*summary.rows, *summary.confirming)))
    console.print("\n".join(describe_result(summary)), markup=False, highlight=False, soft_wrap=True)


@sweep.command()
def best(name: Name, as_json: AsJson = False) -> None:
    """Show the best trial of a sweep.

    Example:

        pipeline sweep best first
    """
    enter_workspace()
    from pipeline.search.progress import describe_result
    from pipeline.search.run import read_summary

    summary = read_summary(name)
    if as_json:
        print_json(summary.best.describe() if summary.best else None)
        return
    console.print("\n".join(describe_result(summary)), markup=False, highlight=False, soft_wrap=True)


@sweep.command()
def apply(
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the change, and write nothing.")] = False,
) -> None:
    """Write the values of the best trial to params.yaml, and show the change. `pipeline run` then trains them.

    Example:

        pipeline sweep apply first
    """
    enter_workspace()
    from pipeline.search import apply as application

    before, after = application.propose(name)
    changes = application.describe_changes(before, after)
    if not changes:
        console.print("params.yaml already has these values")
        return
    console.print(changes, markup=False, highlight=False, soft_wrap=True, end="")
    if not dry_run:
        application.write(after)
        console.print("params.yaml is written; train and judge the model: pipeline run")

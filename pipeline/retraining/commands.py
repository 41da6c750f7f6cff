"""`pipeline retrain`: the retraining that schedules and triggers start, started by hand."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.app import UNATTENDED, command, console, enter_workspace, print_json
from pipeline.errors import TEMPORARY_FAILURE

STYLES = {"champion": "bold green", "failed": "bold red", "rejected": "yellow", "not promoted": "yellow"}
EXIT_CODES = {"failed": 1, "skipped": TEMPORARY_FAILURE}


@command(UNATTENDED, 20)
def retrain(
    ref: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; by default retrain.ref, or the current branch.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter for this retraining only. May be repeated."),
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Run the stages even if nothing is new, and check quarantined batches again.")
    ] = False,
    if_busy: Annotated[
        Literal["leave", "wait"], typer.Option(help="What to do while another retraining is running.")
    ] = "leave",
    push: Annotated[
        Literal["auto", "never"] | None,
        typer.Option(help="Push the branch and its data to the remotes, or keep them here; by default retrain.push."),
    ] = None,
    json: Annotated[bool, typer.Option(help="Print the result as JSON; the progress goes to standard error.")] = False,
) -> None:
    """Retrain in a separate checkout: take in new batches, train, and apply the champion rule.

    Your checkout does not change. The result is a branch `retrain/TIME`, a report, and MLflow's records.
    If remotes are configured, the branch and its data are pushed.
    If nothing is new, nothing is trained. Bad batches are quarantined, and the others are taken in.

    Exit codes: 0; 1 after a failure; 75 if another retraining was running.

    Examples:

        pipeline retrain
        pipeline retrain --ref origin/main --if-busy wait
        pipeline retrain --set train.preset=cnn --set train.epochs=8
        pipeline retrain --force --json
        pipeline retrain --push never
    """
    changes = dict(map(_parse_change, set_ or []))
    workspace = enter_workspace()
    from pipeline.flows.terminal import create_grid
    from pipeline.retraining.run import retrain as retrain_now

    result = retrain_now(workspace, ref=ref, changes=changes, force=force, if_busy=if_busy, push=push, quiet=json)
    if json:
        print_json(asdict(result) | {"report": str(result.report) if result.report else None})
    else:
        console.print(create_grid(result.describe()), style=STYLES.get(result.outcome))
        if result.report:
            console.print(f"report: {result.report}", soft_wrap=True)
    if code := EXIT_CODES.get(result.outcome):
        raise typer.Exit(code)


def _parse_change(text: str) -> tuple[str, Any]:
    from pipeline.files import parse_yaml

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE, such as train.preset=cnn")
    try:
        return key.strip(), parse_yaml(value)
    except ValueError:
        raise typer.BadParameter(f"the value in {text!r} is not YAML") from None

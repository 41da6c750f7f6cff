"""`pipeline review`: find and correct wrong labels."""

import typer

from pipeline.cli.app import EVERY_DAY, group

review = group("review", EVERY_DAY, 80)


@review.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Find wrong labels and duplicates, look at them, and correct them."""
    if context.invoked_subcommand is None:
        print(context.get_help())

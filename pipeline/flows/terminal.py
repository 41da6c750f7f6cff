"""The terminal output of a run: the stages' output, the step that it waits for, and the final table.

On a terminal, this step is shown below the output, with a spinner and the elapsed time. Elsewhere it is a plain line.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from pipeline.flows.summary import Summary
from pipeline.safe_console import SafeConsole

STYLES = {"ran": "green", "restored": "cyan", "unchanged": "dim", "failed": "bold red", "not reached": "yellow"}


class Terminal:
    """Standard output or standard error, shared by the threads of a run."""

    def __init__(self, stderr: bool = False) -> None:
        self._console = SafeConsole(stderr=stderr)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
        )

    def show(self, line: str) -> None:
        """Print a line of a stage's output unchanged."""
        style = "bold" if line.startswith("Running stage '") else "dim" if line.startswith("> ") else ""
        self._console.print(Text(line, style), soft_wrap=True)

    def summarise(self, summary: Summary) -> None:
        """Print the table of stages, the results and the next steps."""
        table = Table("stage", "what happened", Column("seconds", justify="right"), "", box=SIMPLE_HEAD)
        for result in summary.stages:
            style = STYLES[result.outcome]
            table.add_row(result.stage, Text(result.outcome, style), f"{result.seconds:.1f}", Text(result.figure))
        self._console.print(table, create_grid([*summary.describe(), *summary.next_steps()]))

    @contextmanager
    def waiting(self, what: str, announce: bool = True) -> Iterator[None]:
        """Show a text with a spinner and the elapsed time until the block ends.

        Args:
            announce: without a spinner, print a line instead.
        """
        if announce and self._progress.disable:
            self._console.print(what)
        task = self._progress.add_task(what)
        try:
            yield
        finally:
            self._progress.remove_task(task)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def create_grid(facts: Iterable[tuple[str, str | Text]]) -> Table:
    """Return a table with one row for each pair of a name and a sentence."""
    grid = Table.grid("name", "text", padding=(0, 2))
    for name, text in facts:
        grid.add_row(Text(name, "bold"), text if isinstance(text, Text) else Text(text))
    return grid

"""The trials of a sweep on the terminal: a live table, or a line for each change where the output is piped."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from pipeline.search.claims import TRIALS
from pipeline.search.prefect_table import PrefectTable
from pipeline.search.store import get_all
from pipeline.search.summary import Row, Summary, read_rows, sweep_of
from pipeline.workspace import main_repository

if TYPE_CHECKING:
    from optuna import Study
    from rich.console import Console

SHOWN = 20  # rows of the live table: the newest
POLL_SECONDS = 2
STYLES = {"complete": "", "pruned": "dim", "failed": "red", "running": "bold", "waiting": "dim"}


class Progress:
    """Shows the trials of a study while workers run."""

    def __init__(self, study: "Study", console: "Console", workers: int, *, quiet: bool = False) -> None:
        self._study, self._console, self._workers, self._quiet = study, console, workers, quiet
        self._sweep = sweep_of(study)
        self._states: dict[int, str] = {row.number: row.state for row in self._read()}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not quiet else None
        self.prefect, self._last = PrefectTable(main_repository(), study.study_name), 0.0

    def show(self) -> AbstractContextManager[Any]:
        """Return the context in which the table is live."""
        return self._live or nullcontext()

    def update(self, *, now: bool = False) -> None:
        """Show what has changed, every few seconds, or now."""
        if not now and time.monotonic() - self._last < POLL_SECONDS:
            return
        self._last = time.monotonic()
        rows = self._read()
        self.prefect.publish(rows, now=now)
        if self._quiet:
            return
        if self._live:
            self._live.update(tabulate(rows[-SHOWN:], self._time_left(rows)), refresh=True)
            return
        for row in rows:
            if self._states.get(row.number) != row.state:
                self._states[row.number] = row.state
                self._console.print(describe_row(row), markup=False, highlight=False, soft_wrap=True)

    def _read(self) -> list[Row]:
        return read_rows(self._study, self._sweep)

    def _time_left(self, rows: list[Row]) -> str:
        times = [row.seconds for row in rows if row.seconds is not None and not row.reused]
        finished = sum(row.state in ("complete", "pruned", "failed") for row in rows)
        left = max(self._study.user_attrs.get(TRIALS, 0), len(get_all(self._study))) - finished
        if not times or left <= 0:
            return ""
        seconds = median(times) * left / self._workers
        return f"{finished} trials finished, {left} left: about {seconds // 60:.0f}:{seconds % 60:02.0f}"


def tabulate(rows: Iterable[Row], caption: str = "") -> Table:
    """Return a table of trials."""
    right = [Column(title, justify="right", no_wrap=True) for title in ("validation\naccuracy", "epochs", "s")]
    columns = [Column("trial", justify="right"), Column("params", overflow="fold", ratio=1), *right, Column("state")]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, caption=caption or None, caption_justify="left")
    for row in rows:
        table.add_row(
            str(row.number),
            Text(describe_params(row)),
            f"{row.validation_accuracy:.4f}" if row.validation_accuracy is not None else "",
            str(row.epoch or ""),
            f"{row.seconds:.1f}" if row.seconds is not None else "",
            Text(_describe_state(row)),
            style=STYLES[row.state],
        )
    return table


def describe_row(row: Row) -> str:
    """Describe a trial in a line."""
    accuracy = f"  validation accuracy {row.validation_accuracy:.4f}" if row.validation_accuracy is not None else ""
    return f"trial {row.number} {_describe_state(row)}{accuracy}  {describe_params(row)}"


def describe_params(row: Row) -> str:
    """Describe the values of a trial."""
    values = [f"{key} {_short(value)}" for key, value in row.params.items()]
    return ", ".join(values + ([f"seed {row.seed} of trial {row.confirms}"] if row.confirms is not None else []))


def describe_result(summary: Summary) -> list[str]:
    """Describe the result of a sweep: the best trial, those within noise, the confirmations, the cost."""
    best, lines = summary.best, []
    if best is None:
        lines.append("no trial is complete")
    else:
        lines.append(f"best: trial {best.number}, validation accuracy {best.validation_accuracy:.4f}")
        lines.append(f"  {describe_params(best)}")
        others = [row.number for row in summary.within_noise[1:]]
        if others and not summary.confirmations:
            lines.append(
                f"within noise of it, by McNemar's test on the same validation images: trials "
                f"{', '.join(map(str, others))}. More seeds: pipeline sweep --name {summary.name} --confirm 3"
            )
        for one in summary.confirmations:
            values = ", ".join(f"{value:.4f}" for value in one.values)
            lines.append(f"trial {one.number}, other seeds: mean {one.mean:.4f} of {values}")
    counts = [f"{summary.count(state)} {state}" for state in STYLES if summary.count(state)]
    reused = sum(row.reused for row in summary.rows)
    lines.append(
        f"{len(summary.rows)} of {summary.planned} trials: {', '.join(counts) or 'none'}"
        + (f"; {reused} reused" if reused else "")
        + (f"; {len(summary.confirming)} more to confirm" if summary.confirming else "")
        + f"; {summary.cpu_seconds:.0f} CPU seconds"
    )
    return lines


def _describe_state(row: Row) -> str:
    return f"{row.state}, reused" if row.reused else f"{row.state}: {row.reason}" if row.reason else row.state


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")

"""The content of a report, and its two forms: Markdown, and plain text for the terminal."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from pipeline.change_report.changes import Base, Output, Value
from pipeline.change_report.judgement import Judgement
from pipeline.evaluation import markdown
from pipeline.evaluation.champion_rule import in_points
from pipeline.evaluation.comparison import Comparison
from pipeline.safe_console import SafeConsole
from pipeline.tracking.stage_outputs import EVALUATION, TRAINING

SHOWN_CLASSES = 20  # those with the largest differences
SHOWN_FILES = 10  # of a stage; the others are counted
FIGURES = (
    f"{TRAINING}/curves.png",
    f"{EVALUATION}/figures/confusion.png",
    f"{EVALUATION}/figures/reliability.png",
    f"{EVALUATION}/figures/gallery.png",
    f"{EVALUATION}/figures/saliency.png",
)


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, a table and links to files."""

    title: str
    paragraphs: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers: int = 0  # of the last columns, which are right-aligned
    files: Sequence[Path] = ()


def describe_decision(judgement: Judgement) -> Section:
    decision = judgement.decision
    title = "Decision that was made" if judgement.is_made else "Decision that would be made"
    return Section(title, (f"{decision.outcome} ({decision.ground})", decision.reason, judgement.basis))


def describe_comparison(base: Base, comparison: Comparison | str) -> Section:
    title = "Same test images"
    if isinstance(comparison, str):
        return Section(title, (f"There is no comparison: {comparison}.",))
    pairs = comparison.overall
    rows = [
        (
            name,
            f"{each.images:,}",
            f"{each.champion_right:.2%}",
            f"{each.challenger_right:.2%}",
            in_points(each.difference),
            " to ".join(map(in_points, each.interval())),
        )
        for name, each in [*_select(comparison), ("all classes", pairs)]
    ]
    counts = (
        f"Both right {pairs.both_right:,}, both wrong {pairs.both_wrong:,}; only {base.name} right {pairs.lost:,}, "
        f"only this checkout right {pairs.gained:,}: p = {pairs.p_value:.2g} (McNemar, mid-p)."
    )
    calibration = f"Calibration error {comparison.champion_ece:.4f}, then {comparison.challenger_ece:.4f}."
    columns = ("class", "images", base.name, "this checkout", "points", "95% interval")
    return Section(title, (counts, calibration), columns, rows, numbers=5)


def _select(comparison: Comparison) -> list[tuple[str, Any]]:
    """Return all classes, or of many those with the largest differences."""
    by_class = list(comparison.by_class.items())
    if len(by_class) <= SHOWN_CLASSES:
        return by_class
    return sorted(by_class, key=lambda named: -abs(named[1].difference))[:SHOWN_CLASSES]


def describe_metrics(base: Base, metrics: Sequence[Value]) -> Section:
    rows = [
        (_short(metric.name), *map(_format, (metric.before, metric.after)), _subtract(metric)) for metric in metrics
    ]
    about = () if base.has_outputs else (f"The metrics of {base} are not in DVC's cache or a remote.",)
    return Section("Metrics", about, ("metric", base.name, "this checkout", "change"), rows, numbers=3)


def _short(name: str) -> str:
    """`reports/evaluation/metrics.json:loss` becomes `test loss`; those of the validation split are named so."""
    file, _, metric = name.partition(":")
    return f"test {metric}" if file.startswith(EVALUATION) else metric


def _subtract(metric: Value) -> str:
    if not all(isinstance(value, int | float) for value in (metric.before, metric.after)):
        return ""
    return f"{metric.after - metric.before:+.6g}"


def describe_params(base: Base, params: Sequence[Value]) -> Section:
    if not params:
        return Section("Params", ("No param of a stage differs.",))
    rows = [(param.name.removeprefix("params.yaml:"), _format(param.before), _format(param.after)) for param in params]
    return Section("Params", (), ("param", base.name, "this checkout"), rows)


def describe_data(
    base: Base, outputs: Sequence[Output], before: Mapping[str, int], after: Mapping[str, int]
) -> Section:
    about = [
        f"{name}: {before[name]:,} images, then {after[name]:,}."
        for name in after
        if name in before and before[name] != after[name]
    ]
    if not outputs:
        return Section("Data and outputs", ("No output of a stage differs in dvc.lock.",))
    rows = [(each.stage, each.path, each.before[:8] or "-", each.after[:8] or "-") for each in outputs]
    return Section("Data and outputs", about, ("stage", "output", base.name, "this checkout"), rows)


def describe_files(files: Mapping[str, Sequence[str]]) -> Section:
    rows = [(stage or "no stage", _list(names)) for stage, names in files.items() if names]
    if not rows:
        return Section("Files", ("No other file differs.",))
    return Section("Files", (), ("read by", "changed"), rows)


def describe_figures(root: Path) -> Section | None:
    found = [root / name for name in FIGURES if (root / name).is_file()]
    return Section("Figures", files=found) if found else None


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_FILES]) + (
        f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    )


def _format(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def render_markdown(title: str, sections: Iterable[Section], directory: Path, root: Path) -> str:
    """Return a report as Markdown.

    Args:
        directory: where the file will be; figures are linked relative to it.
        root: the root of the checkout, for the names of the figures.
    """
    return "\n\n".join([f"# {markdown.escape(title)}", *_render(sections, directory, root)]) + "\n"


def _render(sections: Iterable[Section], directory: Path, root: Path) -> Iterator[str]:
    for section in sections:
        yield f"## {section.title}"
        yield from (markdown.escape(paragraph) for paragraph in section.paragraphs)
        if section.rows:
            cells = [[markdown.escape(cell) for cell in row] for row in section.rows]
            yield markdown.table([markdown.escape(column) for column in section.columns], cells, section.numbers)
        if section.files:
            links = [
                (file.relative_to(root), Path(os.path.relpath(file, directory)).as_posix()) for file in section.files
            ]
            yield "\n".join(f"- [{name}](<{link}>)" for name, link in links)


def print_report(console: SafeConsole, title: str, sections: Iterable[Section], root: Path) -> None:
    """Print a report as plain text."""
    console.print(Text(title, "bold"), soft_wrap=True)
    for section in sections:
        console.print(Text(f"\n{section.title}", "bold"))
        for paragraph in section.paragraphs:
            console.print(Padding(Text(paragraph), (0, 0, 0, 2)))
        if section.rows:
            plain = len(section.columns) - section.numbers
            columns = [
                Column(name, justify="left" if place < plain else "right", overflow="fold")
                for place, name in enumerate(section.columns)
            ]
            table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
            for row in section.rows:
                table.add_row(*map(Text, row))
            console.print(table)
        for file in section.files:
            console.print(Text(f"  {file.relative_to(root)}"), soft_wrap=True)

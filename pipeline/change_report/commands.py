"""`pipeline report`: the effect of a change on data, params, code, metrics and the decision, against another commit."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import REGISTRY, command, console, enter_workspace
from pipeline.errors import WorkspaceError


@command(REGISTRY, 25)
def report(
    against: Annotated[str, typer.Option("--against", metavar="REF", help="A branch, tag or commit, such as main.")],
    as_markdown: Annotated[bool, typer.Option("--md", help="Write Markdown, as a pull request shows it.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the report to this file.")
    ] = None,
) -> None:
    """Report what differs from another commit, and which decision the champion rule would make.

    The report has the changed files, params and outputs, the metrics, and both models compared on the same test
    images. The other commit's outputs come from DVC's cache or a remote. Your checkout does not change, nothing is
    registered, and the model does not count as a challenger. To choose between experiments, compare the validation
    metrics.

    Examples:

        pipeline report --against origin/main
        pipeline report --against main --md --output report.md
    """
    if output and output.is_dir():
        raise WorkspaceError(
            f"{output} is a directory", expected="a file to write the report to", remedy=f"--output {output}/report.md"
        )
    output = output.resolve() if output else None
    workspace = enter_workspace()
    from pipeline.change_report.report import create_report
    from pipeline.change_report.sections import print_report, render_markdown
    from pipeline.files import atomic_file
    from pipeline.safe_console import SafeConsole

    with console.status("comparing"):
        title, sections = create_report(workspace, against)
    if as_markdown:
        text = render_markdown(title, sections, output.parent if output else workspace, workspace)
        if output is None:
            print(text, end="")
            return
    if output is None:
        print_report(console, title, sections, workspace)
        return
    with atomic_file(output) as partial, partial.open("w", encoding="utf-8") as file:
        if as_markdown:
            file.write(text)
        else:
            print_report(SafeConsole(file=file), title, sections, workspace)
    console.print(f"report: {output}", soft_wrap=True)

"""Commands for auditing: the lineage of versions, their reproduction, and verification by digest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import REGISTRY, command, console, enter_workspace, print_json
from pipeline.cli.registry import MODEL_OPTION
from pipeline.cli.work import INTERRUPTED
from pipeline.errors import FAILURE

if TYPE_CHECKING:
    from pipeline.audit.lineage import Descendant
    from pipeline.audit.verdict import Verdict

EXIT_CODES = {"identical": 0, "equivalent": 3, "not reproduced": 4}
STYLES = {"identical": "green", "equivalent": "yellow", "not reproduced": "bold red"}

VERSION = typer.Argument(help="Number of the version, or an alias such as champion.", show_default=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]


@command(REGISTRY, 60)
def lineage(
    version: Annotated[str | None, VERSION] = None,
    data: Annotated[str | None, typer.Option(metavar="MD5", help="Find the versions made from this data.")] = None,
    commit: Annotated[str | None, typer.Option(metavar="SHA", help="Find the versions trained by this commit.")] = None,
    model: Annotated[str | None, MODEL_OPTION] = None,
    as_json: AsJson = False,
) -> None:
    """Show a version's run, code, params, environment, data, validation, evaluation and decision.

    To find versions instead, give --data the MD5 of a data output in dvc.lock or of a batch, or --commit the SHA-1 of
    a commit. The first characters are enough.

    Examples:

        pipeline lineage 3
        pipeline lineage champion --json
        pipeline lineage --data 683d9031
        pipeline lineage --commit e5d431e
    """
    if sum(given is not None for given in (version, data, commit)) != 1:
        raise typer.BadParameter("give one of: a version, --data, --commit")
    workspace = enter_workspace()
    from pipeline.audit.lineage import describe_lineage, find_descendants, find_lineage

    with console.status("reading from MLflow"):
        if version is not None:
            subjects = describe_lineage(find_lineage(workspace, version, model))
        else:
            found = find_descendants(workspace, data=data, commit=commit)
    if version is not None:
        print_json(subjects) if as_json else _print_lineage(subjects)
    else:
        print_json([asdict(descendant) for descendant in found]) if as_json else _print_descendants(found)


@command(REGISTRY, 70)
def reproduce(
    version: Annotated[str, VERSION], model: Annotated[str | None, MODEL_OPTION] = None, as_json: AsJson = False
) -> None:
    """Run the stages of a version again in a temporary checkout, and compare their outputs with the record.

    Exit codes:

    - 0: identical. The model file is the same, byte for byte.
    - 3: equivalent. The predictions agree within the tolerance, and the cause of the difference is known.
    - 4: not reproduced. The first stage whose output differs is named.
    - 1: the version could not be run again.

    Your checkout, data and aliases do not change. The verdict is recorded on the version.

    Examples:

        pipeline reproduce 3
        pipeline reproduce champion --json
    """
    workspace = enter_workspace()
    from pipeline.audit.reproduction import reproduce as run_again

    try:
        lineage, verdict = run_again(workspace, version, model, quiet=as_json)
    except KeyboardInterrupt:
        console.print("stopped: nothing is left running, and nothing was recorded")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({"name": lineage.version.name, "version": str(lineage.version.version)} | asdict(verdict))
    else:
        _print_verdict(lineage.label, verdict)
    raise typer.Exit(EXIT_CODES[verdict.outcome])


@command(REGISTRY, 80)
def verify(
    fast: Annotated[bool, typer.Option("--fast", help="Skip the data and DVC's cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare registry, artifact store, outputs, dvc.lock and DVC's cache by digest. Nothing is loaded or changed.

    It finds altered model files and damaged files of DVC's cache before they are used. It reads every file.
    The exit code is 1 if anything is wrong.

    Examples:

        pipeline verify
        pipeline verify --fast
    """
    workspace = enter_workspace()
    from rich.progress import track

    from pipeline.audit.verification import verify as compare

    def show(objects: Sequence[Path]) -> Iterable[Path]:
        status.stop()
        hidden = as_json or not console.is_terminal
        return track(objects, "reading DVC's cache", console=console, transient=True, disable=hidden)

    with console.status("comparing digests") as status:
        verification = compare(workspace, fast=fast, track=show)
    if as_json:
        print_json(asdict(verification))
    else:
        for finding in verification.findings:
            console.print(Text(f"{finding.subject}: {finding.problem}", "bold red"), soft_wrap=True)
            for about in ("expected", "found", "remedy"):
                console.print(Text(f"  {about + ':':9} {getattr(finding, about)}"), soft_wrap=True)
        wrong = len(verification.findings)
        cached = "" if fast else f" and {verification.objects:,} objects of DVC's cache"
        console.print(
            f"{verification.versions} versions{cached} compared; " + (f"{wrong} findings" if wrong else "all agree")
        )
    if verification.findings:
        raise typer.Exit(FAILURE)


def _print_lineage(subjects: Mapping[str, Mapping[str, Any]]) -> None:
    from pipeline.tracking.stage_outputs import flatten

    for subject, facts in subjects.items():
        console.print(Text(subject, "bold"))
        for name, value in flatten(facts).items():
            shown = ", ".join(value) if isinstance(value, list) else value
            console.print(Text(f"  {name:36} {shown}"), soft_wrap=True)
    console.print(
        f"\nTo download its files: mlflow artifacts download --run-id {subjects['run']['id']}", soft_wrap=True
    )


def _print_descendants(found: "list[Descendant]") -> None:
    if not found:
        console.print("no version was made from it")
        return
    table = Table("version", "aliases", "by", "run", box=SIMPLE_HEAD)
    for descendant in found:
        label = f"{descendant.name} {descendant.version}"
        table.add_row(label, ", ".join(descendant.aliases), ", ".join(descendant.by), descendant.run)
    console.print(table)


def _print_verdict(version: str, verdict: "Verdict") -> None:
    table = Table("stage", "what happened", "its outputs", box=SIMPLE_HEAD)
    for stage in verdict.stages:
        differing = "\n".join(f"{difference.path}: {difference.how}" for difference in stage.differences)
        same = "as recorded" if stage.compared else "not recorded" if stage.outcome == "ran" else ""
        table.add_row(stage.stage, stage.outcome, Text(differing or same))
    console.print(table)
    console.print(Text(f"{version}: {verdict.outcome}", STYLES[verdict.outcome]))
    console.print(Text(verdict.reason), soft_wrap=True)
